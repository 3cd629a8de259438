"""The way to a safe pose: small commands, each through the gate, at bounded speed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.control.fallback import as_command
from trimvla.runtime.control.safety import Limits, Motion, check, place, speed
from trimvla.runtime.drivers.driver import Reading
from trimvla.runtime.errors import ConfigError

Array = NDArray[np.float64]
CLOSE = 1e-9  # of the units: numerically there


def check_safe_pose(robot: Description, pose: Sequence[float]) -> None:
    """Raise ConfigError for a pose that cannot be gone to: of another length, or out of bounds, or
    where the description bounds neither speed nor range.
    """
    if len(pose) != len(robot.commands):
        raise ConfigError(
            f"expected {len(robot.commands)} numbers of the safe pose, got {len(pose)}"
        )
    for i, (value, part) in enumerate(zip(pose, robot.commands, strict=True)):
        if np.isnan(value):
            continue
        if not np.isfinite([part.low, part.high, part.speed]).all():
            words = "finite 'low', 'high' and 'speed' in the description, for a safe pose"
            got = f"{part.low}, {part.high} and {part.speed}"
            raise ConfigError(f"expected {words}, in dimension {i}, got {got}")
        if part.kind in ("absolute", "gripper") and not part.low <= value <= part.high:
            words = f"{part.low:g} to {part.high:g}"
            raise ConfigError(f"expected {words} for the safe pose in dimension {i}, got {value:g}")


class SafeMotion:
    """From where the robot is to its safe pose, one command after the other.

    Where it is by then is reckoned from the commands: a measurement that lags would be chased.
    """

    def __init__(self, robot: Description, hz: float, pose: Sequence[float], here: Reading) -> None:
        """From a reading `here`, in commands at `hz` a second."""
        position, gripper = here
        kinds = robot.kinds
        start = as_command(kinds, position, gripper)
        measured = place(kinds, position)
        goes = np.isfinite(np.asarray(pose, np.float64))
        unplaced = np.array([kind in ("delta", "velocity") for kind in kinds]) & goes
        if start is None or np.isnan(measured[unplaced]).any():
            raise ConfigError("expected a position for each dimension of the safe pose, got less")
        self._kinds = kinds
        self._hz = hz
        self._relative = np.array([kind in ("absolute", "gripper") for kind in kinds])
        self._limits = Limits(
            tuple(_bounded(part.low) for part in robot.commands),
            tuple(_bounded(part.high) for part in robot.commands),
            velocity=tuple(part.speed for part in robot.commands),
        )
        self._last = start
        self._reckoned = np.where(self._relative, start, np.nan_to_num(measured))
        self._target = np.where(goes, pose, self._reckoned)

    def next(self) -> Array | None:
        """The next command float64[D]; None once it is there, or as far as the limits let it go."""
        left = self._target - self._reckoned
        if (abs(left) <= CLOSE).all():
            return None
        per_second = np.array([self._hz if kind == "velocity" else 1.0 for kind in self._kinds])
        wanted = np.where(self._relative, self._target, left * per_second)
        still = np.zeros(len(self._kinds))
        motion = Motion(self._kinds, self._hz, still, self._reckoned)
        action = check(wanted, self._limits, self._last, motion).action
        if action is None:
            return None
        moved = speed(self._kinds, self._hz, action, self._last) / self._hz
        if (abs(moved) <= CLOSE).all():
            return None
        self._reckoned = self._reckoned + moved
        self._last = action
        return action


def _bounded(value: float) -> float:
    """The gate takes finite ranges; a dimension that stays may have none."""
    return float(np.clip(value, -1e12, 1e12))
