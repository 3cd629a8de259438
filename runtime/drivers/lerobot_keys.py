"""A LeRobot robot's dictionaries and our rows of numbers: which key stands where, in which unit.

Pure: knows keys, features and settings; imports nothing of LeRobot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.bundle.inputs_and_output import ActionKind
from trimvla.runtime.drivers.driver import DriverConfig, Reading
from trimvla.runtime.errors import ConfigError, DriverError

VELOCITY = ".vel"  # the end of a key that is a velocity; all others are targets


@dataclass(frozen=True)
class LeRobotConfig(DriverConfig):
    """A robot of LeRobot, by its type and options; keys of joints are LeRobot's own."""

    type: str = "so101_follower"
    """As in `--robot.type`: one of LeRobot's, or of an installed `lerobot_robot_*` package."""
    options: dict[str, Any] = field(default_factory=dict)
    """As `--robot.*`: port, id, cameras and so on."""
    hz: float = 30.0
    """Commands a second: the rate of control."""
    state_hz: float = 30.0
    """How often it is read, cameras included [Hz]."""
    unit: str = "deg"
    """Of every number that `units` does not name."""
    units: dict[str, str] = field(default_factory=lambda: {"gripper.pos": "percent"})
    """Key -> unit, spelled as in the bundle's `action.units`."""
    limits: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {"gripper.pos": (0.0, 100.0)}
    )
    """Key -> lowest and highest value; control's limits must lie within. Not named: none."""
    speed: float = 30.0
    """The fastest that it moves by itself, to its rest [unit/s]."""
    rest: dict[str, float] = field(default_factory=dict)
    """Its safe pose: key -> value; keys that are not named stay. Each needs `limits`."""
    gripper: str = "gripper.pos"
    """The key that `JointState.gripper` is made of; a robot without it counts as open."""
    gripper_closed: float = 0.0
    gripper_open: float = 100.0
    """Its values where the gripper is closed and open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hz", "speed"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"expected a number above 0 for '{name}', got {getattr(self, name)}"
                )
        if self.gripper_open == self.gripper_closed:
            raise ConfigError("expected 'gripper_open' other than 'gripper_closed'")


class Keys:
    """The keys of one robot, in the order in which it lists its actions."""

    def __init__(
        self, actions: Mapping[str, Any], observations: Mapping[str, Any], config: LeRobotConfig
    ) -> None:
        """From LeRobot's `action_features` and `observation_features`.

        Raises ConfigError where a setting names a key that there is not, or a number that is
        commanded is not measured.
        """
        self._config = config
        self.names = tuple(key for key, kind in actions.items() if not isinstance(kind, tuple))
        self.cameras = tuple(key for key, kind in observations.items() if isinstance(kind, tuple))
        missing = [key for key in self.names if key not in observations]
        if missing or not self.names:
            raise ConfigError(
                f"expected a measured number for each of the action's {list(self.names)}, got none"
                f" for {missing}"
            )
        for setting in ("limits", "rest"):
            unknown = [key for key in getattr(config, setting) if key not in self.names]
            standard = unknown == ["gripper.pos"] and setting == "limits"
            if unknown and not standard:
                raise ConfigError(
                    f"expected keys of the robot for '{setting}', {list(self.names)}, got {unknown}"
                )

    def description(self, unit: str = "") -> Description:
        """What the robot takes and gives; `unit` in place of the configured one."""
        parts = tuple(self._dimension(key, unit or self._config.unit) for key in self.names)
        try:
            state = tuple(Quantity(part.name, part.unit) for part in parts)
            return Description(parts, state, self._config.hz)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _dimension(self, key: str, unit: str) -> Dimension:
        kind: ActionKind = "velocity" if key.endswith(VELOCITY) else "absolute"
        low, high = self._config.limits.get(key, (-math.inf, math.inf))
        unit = self._config.units.get(key, unit)
        return Dimension(key, unit, kind, low, high, self._config.speed)

    def action(self, row: Sequence[float]) -> dict[str, float]:
        """A command as LeRobot takes it."""
        return dict(zip(self.names, map(float, row), strict=True))

    def stop(self, position: Sequence[float]) -> dict[str, float] | None:
        """What stops it: velocities of 0, with targets where it is; None where it has targets
        alone, which it keeps.
        """
        if not any(key.endswith(VELOCITY) for key in self.names):
            return None
        still = [
            0.0 if key.endswith(VELOCITY) else value
            for key, value in zip(self.names, position, strict=True)
        ]
        return self.action(still)

    def reading(self, observation: Mapping[str, Any]) -> Reading:
        """Positions in the order of the commands, and the gripper from 0 to 1.

        Raises DriverError where a key is missing.
        """
        missing = [key for key in (*self.names, *self.cameras) if key not in observation]
        if missing:
            raise DriverError(f"expected {missing} in the robot's observation, got none")
        position = tuple(float(observation[key]) for key in self.names)
        config = self._config
        if config.gripper not in self.names:
            return position, 1.0
        value = position[self.names.index(config.gripper)]
        opening = (value - config.gripper_closed) / (config.gripper_open - config.gripper_closed)
        return position, min(1.0, max(0.0, opening))

    def image(self, observation: Mapping[str, Any], camera: str) -> NDArray[np.uint8]:
        """One camera's image, RGB uint8[h, w, 3]. Raises DriverError for anything else."""
        image = np.asarray(observation[camera])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype}{list(image.shape)}"
            raise DriverError(f"camera '{camera}': expected RGB uint8[h, w, 3], got {got}")
        return np.ascontiguousarray(image)

    def safe_pose(self) -> tuple[float, ...] | None:
        """The rest, in the order of the commands; None where there is none."""
        rest = self._config.rest
        return tuple(rest.get(key, math.nan) for key in self.names) if rest else None


def clipped(sent: Mapping[str, float], really: Mapping[str, Any]) -> list[str]:
    """Keys that LeRobot sent otherwise than commanded, such as by `max_relative_target`."""
    return [
        key
        for key, value in sent.items()
        if key in really and not math.isclose(value, float(really[key]), abs_tol=1e-3)
    ]
