"""What a robot behind ROS 2 topics receives and sends, as CDR bytes: no ROS is needed to run it.

    images       -> `<name>/color`, with the time of their capture
    joint states -> the newest reading, by names
    Bool         -> `estop`, `deadman`: one message for each that comes, so that their silence is
                    ours
    String       -> `task`, repeated until another one comes
    a command    -> one message for each controller

A message that is wrong is counted, and its reason shows in the report; it changes nothing. Knows
messages and our topics; no node. `receive` is called by one thread, everything else by another.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import UNKNOWN_AGE, Deadman, EStop, Frame, Task
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.drivers.driver import Reading
from trimvla.runtime.errors import DriverError, WireError
from trimvla.runtime.log_limit import LimitedLog
from trimvla.runtime.ros import cdr
from trimvla.runtime.ros.config import ControllerConfig, Ros2Config, RosCameraConfig
from trimvla.runtime.ros.images import read_compressed, read_image
from trimvla.runtime.ros.joints import array, positions_of, trajectory
from trimvla.runtime.ros.stamps import Arrival, StampClock

log = logging.getLogger(__name__)
limited_log = LimitedLog(log)
TASK_PERIOD_S = 0.2
SWITCH_DEPTH = 64
MAX_TEXT = 4096  # letters of an instruction, as in our message


@dataclass(frozen=True)
class Channel:
    """A ROS topic, its type, and how it is carried."""

    topic: str
    type: str
    quality: Literal["best effort", "reliable"]
    """A best-effort reader also takes what a reliable publisher sends, not the other way round."""
    depth: int = 1
    """How many messages wait; with 1 the newest wins."""


@dataclass(frozen=True)
class State:
    """The newest joint state."""

    positions: tuple[float, ...]
    time_ns: int
    """On our clock."""


class Bridge:
    """Between ROS topics and ours."""

    def __init__(self, config: Ros2Config, run_dir: Path) -> None:
        """Publish in the run directory.

        Raises ConfigError where a topic has a publisher, or `rosbags` is not installed.
        """
        cdr.types()
        self._config = config
        self._handlers: dict[str, Callable[[bytes, Arrival], None]] = {}
        self._lock = threading.Lock()
        self._state: State | None = None
        self._task: Task | None = None
        self._task_due_ns = 0
        self._counts: Counter[str] = Counter()
        self._problems: dict[str, str] = {}
        self.failure: DriverError | None = None
        """Why nothing that comes can be used."""
        self._stack = ExitStack()
        self.inputs: list[Channel] = []
        """What it receives."""
        self.outputs = [
            Channel(each.topic, _command_type(each), "reliable") for each in config.controllers
        ]
        """What it sends."""
        with ExitStack() as stack:
            self._tasks = self._open(run_dir, stack)
            self._stack = stack.pop_all()

    def _open(self, run_dir: Path, stack: ExitStack) -> Publisher | None:
        """Publishers of ours behind every topic of ROS; the one of `task`, where there is one."""
        config = self._config

        def publisher(name: str, hz: float | None = None) -> Publisher:
            return stack.enter_context(Publisher(run_dir, topic(name, hz)))

        clock = StampClock(config.joint_states)
        self._add(config.joint_states, cdr.JOINTS, "best effort", partial(self._take_joints, clock))
        for camera in config.cameras:
            frames = publisher(color(camera.name), camera.hz)
            handler = partial(self._take_image, camera, frames, StampClock(camera.topic))
            kind = cdr.COMPRESSED if camera.compressed else cdr.IMAGE
            self._add(camera.topic, kind, "best effort", handler)
        if config.estop:
            handler = partial(self._take_estop, publisher("estop"))
            self._add(config.estop, cdr.BOOL, "reliable", handler)
        if config.deadman:
            handler = partial(self._take_deadman, publisher("deadman"))
            self._add(config.deadman, cdr.BOOL, "reliable", handler)
        if not config.instruction:
            return None
        self._add(config.instruction, cdr.STRING, "reliable", self._take_instruction)
        return publisher("task")

    def _add(
        self,
        name: str,
        kind: str,
        quality: Literal["best effort", "reliable"],
        handler: Callable[[bytes, Arrival], None],
    ) -> None:
        depth = SWITCH_DEPTH if kind == cdr.BOOL else 1  # a short press counts
        self.inputs.append(Channel(name, kind, quality, depth))
        self._handlers[name] = handler

    def receive(self, name: str, raw: bytes, arrival: Arrival) -> None:
        """Take a message of a ROS topic; never raises."""
        if self.failure is not None:
            return
        try:
            self._handlers[name](raw, arrival)
        except WireError as error:
            self._note(name, str(error))
        except DriverError as error:
            self.failure = error

    def _note(self, name: str, problem: str) -> None:
        """A message that cannot be used."""
        with self._lock:
            self._counts["refused"] += 1
            self._problems[name] = problem
        limited_log.warning(name, "topic '%s': not used: %s", name, problem)

    def _take_image(
        self,
        camera: RosCameraConfig,
        frames: Publisher,
        clock: StampClock,
        raw: bytes,
        arrival: Arrival,
    ) -> None:
        message = cdr.decode(raw, cdr.COMPRESSED if camera.compressed else cdr.IMAGE)
        known = clock.found
        time_ns = clock.to_ours(cdr.stamp_ns(message), arrival.ros_ns, arrival.ours)
        if not known:  # the first few show which clock it is
            return
        image = read_compressed(message) if camera.compressed else read_image(message)
        frames.send(_frame(camera.name, image, time_ns))
        with self._lock:
            self._counts[f"frames.{camera.name}"] += 1
            self._counts["unknown_age"] += time_ns is None

    def _take_joints(self, clock: StampClock, raw: bytes, arrival: Arrival) -> None:
        message = cdr.decode(raw, cdr.JOINTS)
        positions = positions_of(message, self._config.joints)
        known = clock.found
        time_ns = clock.to_ours(cdr.stamp_ns(message), arrival.ros_ns, arrival.ours)
        with self._lock:
            if time_ns is not None:
                self._state = State(positions, time_ns)
                self._problems.pop(self._config.joint_states, None)
                return
        if known:
            with self._lock:
                self._counts["unknown_age"] += 1
            self._note(self._config.joint_states, "a joint state without a usable 'header.stamp'")

    def _take_estop(self, stops: Publisher, raw: bytes, arrival: Arrival) -> None:
        pressed = bool(cdr.decode(raw, cdr.BOOL).data)
        source = f"ROS topic {self._config.estop}"
        stops.send(EStop(time_ns=arrival.ours.ours, pressed=pressed, source=source))

    def _take_deadman(self, switches: Publisher, raw: bytes, arrival: Arrival) -> None:
        held = bool(cdr.decode(raw, cdr.BOOL).data)
        switches.send(Deadman(time_ns=arrival.ours.ours, held=held))

    def _take_instruction(self, raw: bytes, arrival: Arrival) -> None:
        text = cdr.decode(raw, cdr.STRING).data.strip()
        if len(text) > MAX_TEXT:
            raise WireError(f"expected at most {MAX_TEXT} letters for 'data', got {len(text)}")
        with self._lock:
            self._task = _next_task(self._task, text, arrival.ours.ours)
            self._task_due_ns = 0

    def publish_task(self) -> None:
        """Repeat the task when it is due."""
        now = monotonic_ns()
        with self._lock:
            task = self._task
            if self._tasks is None or task is None or now < self._task_due_ns:
                return
            self._task_due_ns = now + to_ns(TASK_PERIOD_S)
        self._tasks.send(msgspec.structs.replace(task, time_ns=now))

    @property
    def state(self) -> State | None:
        """The newest joint state that is young enough. Raises DriverError, see `failure`."""
        if self.failure is not None:
            raise self.failure
        with self._lock:
            state = self._state
        limit_ns = to_ns(self._config.state_timeout_s)
        return state if state is not None and monotonic_ns() - state.time_ns <= limit_ns else None

    def problem(self, name: str) -> str:
        """Why the last messages of a topic were not used; empty where they were."""
        with self._lock:
            return self._problems.get(name, "")

    def figures(self) -> dict[str, float]:
        """Counts, for the report."""
        with self._lock:
            return {name: float(count) for name, count in self._counts.items()}

    def reading(self, state: State) -> Reading:
        """Positions in the order of the commands, and the gripper from 0 (closed) to 1 (open)."""
        config = self._config
        if not config.gripper:
            return state.positions, 1.0
        value = state.positions[config.joints.index(config.gripper)]
        opening = (value - config.gripper_closed) / (config.gripper_open - config.gripper_closed)
        return state.positions, min(1.0, max(0.0, opening))

    def commands(self, action: Sequence[float]) -> list[tuple[str, bytes]]:
        """A command as messages: the topic and the bytes of each controller's."""
        values = dict(zip(self._config.joints, map(float, action), strict=True))
        reach_ns = to_ns(1 / self._config.hz)
        return [_command(each, values, reach_ns) for each in self._config.controllers]

    def still(self, action: Sequence[float]) -> list[float]:
        """What holds after a command: its targets, and velocities of 0."""
        kinds = map(self._config.kind_of, self._config.joints)
        pairs = zip(kinds, action, strict=True)
        return [0.0 if kind == "velocity" else float(value) for kind, value in pairs]

    def close(self) -> None:
        """Close our sockets."""
        self._stack.close()


def _frame(name: str, image: NDArray[np.uint8], time_ns: int | None) -> Frame:
    if time_ns is None:
        return Frame(camera=name, time_ns=0, image=image, timestamp_source=UNKNOWN_AGE)
    return Frame(camera=name, time_ns=time_ns, image=image, timestamp_source="driver")


def _command_type(controller: ControllerConfig) -> str:
    return cdr.TRAJECTORY if controller.form == "trajectory" else cdr.ARRAY


def _next_task(before: Task | None, text: str, now_ns: int) -> Task | None:
    """The task after an instruction: the same where it is repeated; an empty one ends it."""
    if not text:
        return None if before is None else msgspec.structs.replace(before, active=False)
    if before is not None and before.active and before.instruction == text:
        return before
    episode = 1 if before is None else before.episode + 1
    return Task(time_ns=now_ns, episode=episode, instruction=text, started_ns=now_ns, seed=0)


def _command(
    controller: ControllerConfig, values: dict[str, float], reach_ns: int
) -> tuple[str, bytes]:
    row = [values[joint] for joint in controller.joints]
    if controller.form == "trajectory":
        message = trajectory(controller.joints, row, reach_ns)
        return controller.topic, cdr.encode(message, cdr.TRAJECTORY)
    return controller.topic, cdr.encode(array(row), cdr.ARRAY)
