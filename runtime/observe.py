"""Joins the newest pictures, the robot's state and the task into one observation, or says why it must not be acted on.

Pure: knows messages and ages; not where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from trimvla.runtime.clock import NS_PER_MS
from trimvla.runtime.errors import ConfigError, ObservationError, StaleError
from trimvla.runtime.messages import Frame, JointState, Task

Part = TypeVar("Part", Frame, JointState)


@dataclass(frozen=True)
class AgeBudget:
    """How old what the policy looks at may be [s]."""

    frame_s: float = 0.5
    state_s: float | None = None
    """None where the policy does not read the state."""

    def __post_init__(self) -> None:
        if not self.frame_s > 0 or (self.state_s is not None and not self.state_s > 0):
            raise ConfigError(f"expected ages above 0 s, got 'frame_s' {self.frame_s} and 'state_s' {self.state_s}")


@dataclass(frozen=True, eq=False)
class Observation:
    """What the policy may act on. `time_ns` is the capture of the oldest picture."""

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
) -> Observation:
    """One observation from the newest of everything.

    Args:
        now_ns: this moment, on the clock of the messages.
        frames: the newest frame of every camera that the policy looks through.
        task: what is to be done now.
        state: where the robot is.
        budget: the ages that are allowed.

    Raises:
        ObservationError: no active task, or a part that has never come.
        StaleError: a part that is too old, is from before the task, or claims to be from the future.
    """
    if task is None or not task.active:
        raise ObservationError("no active task")
    seen = {camera: _need(f"{camera}/color", frame) for camera, frame in frames.items()}
    for camera, frame in seen.items():
        _check_age(f"{camera}/color", frame.time_ns, now_ns, budget.frame_s, task.started_ns)
    if budget.state_s is not None:
        _check_age("robot/state", _need("robot/state", state).time_ns, now_ns, budget.state_s, 0)
    return Observation(seen, task, state, min(frame.time_ns for frame in seen.values()))


def _need(name: str, part: Part | None) -> Part:
    if part is None:
        raise ObservationError(f"nothing has come on '{name}' yet")
    return part


def _check_age(name: str, time_ns: int, now_ns: int, budget_s: float, started_ns: int) -> None:
    age_ms = (now_ns - time_ns) / NS_PER_MS
    if age_ms > budget_s * 1e3:
        raise StaleError(f"expected at most {budget_s * 1e3:.0f} ms of age for '{name}', got {age_ms:.0f} ms")
    if age_ms < 0:
        raise StaleError(f"expected a past time for '{name}', got one {-age_ms:.0f} ms ahead")
    if time_ns < started_ns:
        early_ms = (started_ns - time_ns) / NS_PER_MS
        raise StaleError(f"expected '{name}' from after the task's start, got one {early_ms:.0f} ms before")
