"""CogACT chunks to SIMPLER actions, for the Google robot and WidowX, as the public evaluation
adapter does it.

Rotations go from Euler angles to axis-angle. The Google robot's gripper is relative and sticky: a
change is repeated for ten steps; WidowX's is absolute. One adapter per episode stream; `reset`
between episodes. Source: microsoft/CogACT, whose quirks are kept (the previous gripper value moves
only when a change is accepted).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trimvla.runtime.chunks.ensemble import ALPHA, HORIZONS, AdaptiveEnsemble
from trimvla.runtime.errors import ConfigError

Robot = Literal["google_robot", "widowx_bridge"]
STICKY_REPEATS = 10
CHANGE = 0.5  # a gripper difference beyond this is a command
GRIPPER_OPEN = 0.5  # above this the gripper is open


def euler_to_axis_angle(euler: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw [rad] about fixed x, y, z -> float64[3] axis times angle [rad]."""
    (sr, cr), (sp, cp), (sy, cy) = ((math.sin(a / 2), math.cos(a / 2)) for a in map(float, euler))
    w = cr * cp * cy + sr * sp * sy
    xyz = np.array(
        [sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy]
    )
    length = float(np.linalg.norm(xyz))
    return xyz / length * 2.0 * math.atan2(length, w) if length > 0.0 else np.zeros(3)


@dataclass
class StickyGripper:
    """Absolute openings to relative commands that hold for `STICKY_REPEATS` steps."""

    previous: np.ndarray | None = None
    held: np.ndarray | None = None
    repeats: int = 0

    def step(self, opening: np.ndarray) -> np.ndarray:
        """float64[1] opening -> float64[1]: previous - current, or the held command."""
        if self.previous is None:
            self.previous = opening
            relative = np.zeros(1)
        else:
            relative = self.previous - opening
        if self.held is None and abs(float(relative[0])) > CHANGE:
            self.held = relative
            self.previous = opening
        return relative if self.held is None else self._repeat(self.held)

    def _repeat(self, command: np.ndarray) -> np.ndarray:
        self.repeats += 1
        if self.repeats == STICKY_REPEATS:
            self.held = None
            self.repeats = 0
        return command


@dataclass
class SimplerAdapter:
    """Chunks in, one SIMPLER action per step out."""

    robot: Robot
    ensemble: bool = True
    alpha: float = ALPHA
    _ensemble: AdaptiveEnsemble = field(init=False)
    _gripper: StickyGripper = field(init=False)

    def __post_init__(self) -> None:
        if self.robot not in HORIZONS:
            raise ConfigError(f"expected one of {sorted(HORIZONS)}, got {self.robot!r} for 'robot'")
        self.reset()

    def reset(self) -> None:
        """Start a new episode (or task)."""
        self._ensemble = AdaptiveEnsemble(HORIZONS[self.robot], self.alpha)
        self._gripper = StickyGripper()

    def step(self, chunk: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Turn the newest chunk into the action of this step.

        Args:
            chunk: float[H, 7], un-normalised: delta xyz [m], delta Euler [rad], gripper (1 = open).

        Returns:
            raw {"world_vector" [3], "rotation_delta" [3], "open_gripper" [1]} and action
            {"world_vector" [3], "rot_axangle" [3], "gripper" [1], "terminate_episode" [1]},
            float64.
        """
        row = self._ensemble.step(chunk) if self.ensemble else np.asarray(chunk, np.float64)[0]
        raw = {"world_vector": row[:3], "rotation_delta": row[3:6], "open_gripper": row[6:7]}
        action = {
            "world_vector": raw["world_vector"],
            "rot_axangle": euler_to_axis_angle(raw["rotation_delta"]),
            "gripper": self._to_gripper(raw["open_gripper"]),
            "terminate_episode": np.zeros(1),
        }
        return raw, action

    def _to_gripper(self, opening: np.ndarray) -> np.ndarray:
        if self.robot == "google_robot":
            return self._gripper.step(opening)
        return 2.0 * (opening > GRIPPER_OPEN) - 1.0
