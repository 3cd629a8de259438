"""A scripted expert in joint space, in a policy's place: it sees a cube and brings the arm to it.

It looks at one camera's newest image and at the joints, and publishes action chunks of targets, as
a policy does. Knows the arm of `joint_arm`; no simulator's state.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.sim.robots.joint_arm import CUBE, KEYS, find_cube, reach

ROWS = 32
UNITS = ("deg",) * 5 + ("percent",)
HOVER = 0.05  # m above the cube, where the arm turns to it
CLOSE = 5.0  # degrees from there: then it goes down
WAIT_S = 0.05


@dataclass(frozen=True)
class ExpertConfig:
    """Where it looks, and how fast it moves."""

    camera: str = "top"
    hz: float = 15.0
    """Rows a second."""
    speed: float = 60.0
    """Of each joint [deg/s]."""


class Expert:
    """The cube that was seen, and the way to it. Pure."""

    def __init__(self, config: ExpertConfig) -> None:
        self._step = config.speed / config.hz
        self._cube: tuple[float, float] | None = None
        self._down = False

    def plan(
        self, image: NDArray[np.uint8], joints: Sequence[float]
    ) -> tuple[tuple[float, ...], ...]:
        """Targets float[32, 6]; where no cube was ever seen, those that stay."""
        self._cube = self._cube or find_cube(image)
        here = np.asarray(joints, np.float64)
        if self._cube is None:
            return (tuple(here.tolist()),) * ROWS
        goal = here.copy()
        found = reach(*self._cube, CUBE if self._down else HOVER)
        for key, value in found.items():
            goal[KEYS.index(key)] = value
        self._down |= bool((abs(goal - here) < CLOSE).all())
        steps = np.arange(ROWS)[:, None] * self._step
        rows = here + np.clip(goal - here, -steps, steps)
        return tuple(map(tuple, rows.tolist()))


def run(config: ExpertConfig, run_dir: Path, stop: threading.Event, name: str) -> None:
    """The process, until `stop`: a chunk for each new image, while there is a task."""
    telemetry = Telemetry(name)
    telemetry.state = "running"
    topics = [topic(color(config.camera)), topic("robot/state"), topic("task")]
    expert = Expert(config)
    with Subscriber(run_dir, topics) as inputs, Publisher(run_dir, topic("chunk")) as chunks:
        reporter = Reporter(run_dir, telemetry, inputs)
        try:
            while not stop.is_set():
                inputs.update(WAIT_S)
                if (chunk := _chunk(expert, config, inputs)) is not None:
                    chunks.send(chunk)
                    telemetry.count("chunks")
                reporter.beat()
        finally:
            reporter.close()


def _chunk(expert: Expert, config: ExpertConfig, inputs: Subscriber) -> ActionChunk | None:
    """From the newest image; None where there is no new one, no state or no task."""
    seen = inputs[color(config.camera)]
    frame = seen.message
    state = inputs["robot/state"].message
    task = inputs["task"].message
    if not (seen.updated and isinstance(frame, Frame) and isinstance(state, JointState)):
        return None
    if not isinstance(task, Task):
        return None
    return ActionChunk(
        time_ns=frame.time_ns,
        produced_ns=monotonic_ns(),
        episode=task.episode,
        instruction=task.instruction,
        actions=expert.plan(frame.image, state.position),
        control_hz=config.hz,
        kinds=("absolute",) * len(KEYS),
        names=KEYS,
        units=UNITS,
        valid_rows=ROWS,
        frame_sequence=frame.sequence,
        seed=(0,),
    )
