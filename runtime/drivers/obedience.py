"""Which commands a driver obeys, and when it must hold, or go to its safe pose, by itself. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.bus.messages import Command
from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.control.fallback import as_command
from trimvla.runtime.drivers.driver import DriverConfig

Verdict = Literal["obeyed", "repeated", "stale", "misfit"]


class Obedience:
    """What becomes of each command, and of silence."""

    def __init__(self, config: DriverConfig, numbers: int) -> None:
        """For commands of so many numbers."""
        self._config = config
        self._numbers = numbers
        self._last: Command | None = None
        self._obeyed_ns = 0
        self.obeyed = False
        """Whether it ever obeyed: what was never moved is not moved by itself."""
        self.moving = False
        """Whether the robot may still be moving for a command."""
        self._stays = True

    def judge(self, command: Command, now_ns: int) -> Verdict:
        """What becomes of a command. One that is repeated or stale is no sign of life."""
        if self._last is not None and command.time_ns <= self._last.time_ns:
            return "repeated"
        self._last = command
        if now_ns - command.time_ns > to_ns(self._config.stale_s):
            return "stale"
        if len(command.action) != self._numbers:
            return "misfit"
        return "obeyed"

    def obey(self, now_ns: int) -> None:
        """A command is carried out at this moment."""
        self._obeyed_ns = now_ns
        self.obeyed = True
        self.moving = True
        self._stays = False

    def end(self) -> None:
        """Nothing is obeyed any more, and silence means nothing."""
        self.moving = False
        self._stays = True

    def must_hold(self, now_ns: int) -> bool:
        """True at the moment when the commander has been silent for too long; then not again."""
        silent = self.moving and now_ns - self._obeyed_ns > to_ns(self._config.watchdog_s)
        if silent:
            self.moving = False
        return silent

    def must_leave(self, now_ns: int) -> bool:
        """True at the moment when a robot that holds is to go to its safe pose; then not again."""
        limit_s = self._config.safe_after_s
        due = not (self._stays or self.moving) and (now_ns - self._obeyed_ns) / NS_PER_S > limit_s
        if due:
            self._stays = True
        return due


def has_bounded_targets(robot: Description) -> bool:
    """Whether `too_far` has anything to judge."""
    return any(part.kind == "absolute" and math.isfinite(part.speed) for part in robot.commands)


def too_far(
    robot: Description, action: Sequence[float], position: Sequence[float], gripper: float, s: float
) -> str:
    """Why a first target must not be obeyed: it is farther than the robot goes by itself in `s`.

    A commander that comes back after an interruption may go on from where the robot no longer is.
    Empty for deltas and velocities, and where no speed is described.
    """
    here = as_command(robot.kinds, position, gripper)
    if here is None:
        return ""
    for i, part in enumerate(robot.commands):
        distance = abs(action[i] - here[i])
        if part.kind == "absolute" and not distance <= part.speed * s:
            words = f"a first target within {part.speed * s:g} of {here[i]:g}"
            return f"expected {words} in dimension {i}, got {action[i]:g}"
    return ""


def known(position: Sequence[float], gripper: float) -> bool:
    """Whether every number of a reading is finite."""
    return bool(np.isfinite([*position, gripper]).all())
