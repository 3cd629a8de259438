"""The simulated camera: draws the world that the simulated robot publishes, and publishes frames as
any camera does.

A frame's capture time is the time of the state that it shows. Without a new state there is no new
frame: a frozen world looks like a frozen camera, and the runtime holds. Knows rendering; knows no
task.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.runtime.bus.messages import Frame, SimState
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import CAMERA_NAME, color, topic
from trimvla.runtime.clock import Rate, monotonic_ns
from trimvla.runtime.errors import ConfigError
from trimvla.sim.tabletop.model import TabletopRenderer

WORLD = "sim/state"


@dataclass(frozen=True)
class SimCameraConfig:
    """A camera of the simulator. The shipped policy was trained on the side's default."""

    name: str = "front"
    """Name of the camera, and of its topic `<name>/color`."""
    hz: float = 12.0
    """Frames per second."""
    side: int = 128
    """Side of the square image [pixels]."""

    def __post_init__(self) -> None:
        if not CAMERA_NAME.fullmatch(self.name):
            raise ConfigError(
                f"expected letters, digits, '_', '.' or '-', got {self.name!r} for 'name'"
            )
        if self.hz <= 0 or self.side < 16:
            raise ConfigError(f"expected hz > 0 and side >= 16, got {self.hz} and {self.side}")


class SceneRenderer:
    """Images of states; opens the renderer with the first scene and keeps it while scenes
    change.
    """

    def __init__(self, side: int) -> None:
        self._side = side
        self._scene: dict[str, Any] | None = None
        self._renderer: TabletopRenderer | None = None

    def picture(self, state: SimState) -> np.ndarray:
        """uint8[side, side, 3] of this state."""
        if self._renderer is None:
            self._renderer = TabletopRenderer(state.scene)
        elif state.scene != self._scene:
            self._renderer.set_scene(state.scene)
        self._scene = state.scene
        return self._renderer.render(np.asarray(state.qpos), height=self._side, width=self._side)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()


def needs(config: SimCameraConfig) -> tuple[str, ...]:
    """The topics without which it has nothing to draw."""
    del config
    return (WORLD,)


def run(config: SimCameraConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `camera-<name>`: take the newest state, draw it, publish, keep time, until
    `stop`.
    """
    renderer = SceneRenderer(config.side)
    reporter = Reporter(run_dir, Telemetry(f"camera-{config.name}"))
    frames = Publisher(run_dir, topic(color(config.name), config.hz))
    states = Subscriber(run_dir, [topic(WORLD)])
    reporter.inputs = states
    rate = Rate(config.hz, sleep=stop.wait)
    try:
        while not stop.is_set():
            states.update()
            state = states[WORLD].message
            if states[WORLD].updated and isinstance(state, SimState):
                frames.send(capture(config.name, renderer, state, reporter.telemetry))
            reporter.beat()
            rate.wait()
    finally:
        for closing in (states, reporter, frames, renderer):
            closing.close()


def capture(name: str, renderer: SceneRenderer, state: SimState, telemetry: Telemetry) -> Frame:
    """The frame that shows this state."""
    start = monotonic_ns()
    image = renderer.picture(state)
    telemetry.time_ns("render", monotonic_ns() - start)
    telemetry.count("frames_published")
    telemetry.state = "streaming"
    return Frame(camera=name, time_ns=state.time_ns, image=image, timestamp_source="simulator")
