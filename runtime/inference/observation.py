"""Joins the newest images, the robot's state and the task into one observation, or gives the reason
why it must not be acted on.

Pure: knows messages, ages and what `frozen` measured; not where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from trimvla.runtime.bus.messages import Frame, JointState, Task
from trimvla.runtime.clock import NS_PER_MS
from trimvla.runtime.errors import ConfigError, FrozenError, ObservationError, SkewError, StaleError
from trimvla.runtime.inference.frozen_frames import Still, Stills

Part = TypeVar("Part", Frame, JointState)


@dataclass(frozen=True)
class AgeBudget:
    """How old what the policy looks at may be [s]; None switches a check off."""

    frame_s: float = 0.5
    """Of an image."""
    cameras: dict[str, float] = field(default_factory=dict)
    """The same, for cameras that differ."""
    set_s: float | None = None
    """Of the oldest image of all; where cameras have ages of their own."""
    skew_s: float | None = 0.1
    """Between the oldest and the newest image of one observation."""
    state_s: float | None = None
    """Of the robot's state; None where the policy does not read it."""
    frozen_s: float | None = None
    """How long a camera may send the same pixels, of one image or of several in turn. For cameras
    with a sensor, whose noise is never the same; not for simulated images, nor for a video that
    starts again within 32 images.
    """
    frozen_moved: float | None = 0.02
    """How far the robot may move [rad or m] while a camera sends the same pixels; None where it
    does not see it.
    """
    frozen_alike: float | None = 0.1
    """How far the robot may move [rad or m] while a camera shows the same in other pixels: encoded
    anew, brighter, with noise or a clock on it. None where a camera sees too little of the robot.
    """

    def __post_init__(self) -> None:
        ages = {name: value for name, value in vars(self).items() if name != "cameras"}
        ages |= {f"cameras.{name}": value for name, value in self.cameras.items()}
        wrong = {name: value for name, value in ages.items() if value is not None and not value > 0}
        if wrong:
            raise ConfigError(f"expected numbers above 0 in a budget, got {wrong}")

    def of_camera(self, camera: str) -> float:
        """How old an image of this camera may be [s]."""
        return self.cameras.get(camera, self.frame_s)


@dataclass(frozen=True, eq=False)
class JoinedObservation:
    """What the policy may act on. `time_ns` is the capture of the oldest image."""

    frames: dict[str, Frame]
    task: Task
    state: JointState | None
    time_ns: int


def join(
    now_ns: int,
    frames: Mapping[str, Frame | None],
    task: Task | None,
    state: JointState | None = None,
    budget: AgeBudget = AgeBudget(),
    *,
    stills: Mapping[str, Stills] | None = None,
) -> JoinedObservation:
    """One observation from the newest of everything.

    Args:
        now_ns: this moment, on the clock of the messages.
        frames: the newest frame of every camera that must be there.
        task: what is to be done now.
        state: where the robot is.
        budget: the ages that are allowed.
        stills: by camera, for how long its images have shown nothing new.

    Raises:
        ObservationError: no active task, or a part that has never come.
        StaleError: a part that is too old or of unknown age, is from before the task, or claims to
            be from the future.
        SkewError: images of different moments.
        FrozenError: images that are new and show nothing new.
    """
    if task is None or not task.active:
        raise ObservationError("no active task")
    seen = {camera: _need(f"{camera}/color", frame) for camera, frame in frames.items()}
    for camera, frame in seen.items():
        if not frame.age_known:
            raise StaleError(
                f"expected a time of capture for '{camera}/color', got an image of unknown age"
            )
        _check_age(
            f"{camera}/color", frame.time_ns, now_ns, budget.of_camera(camera), task.started_ns
        )
    oldest = min(seen.values(), key=lambda frame: frame.time_ns)
    _check_set(seen, oldest, now_ns, budget)
    if budget.state_s is not None:
        _check_age("robot/state", _need("robot/state", state).time_ns, now_ns, budget.state_s, 0)
    for camera, still in (stills or {}).items():
        _check_same(camera, still.same, seen[camera], budget)
        _check_alike(camera, still.alike, seen[camera], budget)
    return JoinedObservation(seen, task, state, oldest.time_ns)


def _need(name: str, part: Part | None) -> Part:
    if part is None:
        raise ObservationError(f"nothing has come on '{name}' yet")
    return part


def _check_age(name: str, time_ns: int, now_ns: int, budget_s: float, started_ns: int) -> None:
    age_ms = (now_ns - time_ns) / NS_PER_MS
    if age_ms > budget_s * 1e3:
        raise StaleError(
            f"expected at most {budget_s * 1e3:.0f} ms of age for '{name}', got {age_ms:.0f} ms"
        )
    if age_ms < 0:
        raise StaleError(f"expected a past time for '{name}', got one {-age_ms:.0f} ms ahead")
    if time_ns < started_ns:
        early_ms = (started_ns - time_ns) / NS_PER_MS
        raise StaleError(
            f"expected '{name}' from after the task's start, got one {early_ms:.0f} ms before"
        )


def _check_set(seen: Mapping[str, Frame], oldest: Frame, now_ns: int, budget: AgeBudget) -> None:
    """All images together: the age of the oldest, and how far it is behind the newest."""
    age_ms = (now_ns - oldest.time_ns) / NS_PER_MS
    if budget.set_s is not None and age_ms > budget.set_s * 1e3:
        limit = f"at most {budget.set_s * 1e3:.0f} ms of age for all images together"
        raise StaleError(f"expected {limit}, got {age_ms:.0f} ms from '{oldest.camera}/color'")
    newest = max(seen.values(), key=lambda frame: frame.time_ns)
    skew_ms = (newest.time_ns - oldest.time_ns) / NS_PER_MS
    if budget.skew_s is not None and skew_ms > budget.skew_s * 1e3:
        pair = f"between '{oldest.camera}/color' and '{newest.camera}/color'"
        raise SkewError(
            f"expected at most {budget.skew_s * 1e3:.0f} ms {pair}, got {skew_ms:.0f} ms"
        )


def _check_same(camera: str, still: Still, frame: Frame, budget: AgeBudget) -> None:
    """The same pixels for too long, or while the robot moved."""
    lasted_ms = (frame.time_ns - still.since_ns) / NS_PER_MS
    what = f"expected new pixels on '{camera}/color', got the same for {lasted_ms:.0f} ms"
    if budget.frozen_s is not None and still.repeats > 0 and lasted_ms > budget.frozen_s * 1e3:
        raise FrozenError(f"{what} ({still.repeats + 1} images)", still.since_ns)
    if still.beyond(budget.frozen_moved):
        raise FrozenError(f"{what} while the robot moved by {still.moved:.3g}", still.since_ns)


def _check_alike(camera: str, still: Still, frame: Frame, budget: AgeBudget) -> None:
    """The same content in other pixels while the robot moved."""
    if still.beyond(budget.frozen_alike):
        lasted_ms = (frame.time_ns - still.since_ns) / NS_PER_MS
        what = (
            f"expected images of the motion on '{camera}/color', got the same content for"
            f" {lasted_ms:.0f} ms"
        )
        raise FrozenError(f"{what} while the robot moved by {still.moved:.3g}", still.since_ns)
