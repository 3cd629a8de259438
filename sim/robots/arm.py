"""A simulated arm without a world: a driver like any other, with faults.

It integrates deltas, and lies about itself, or does not move, as its switch is set. What every
driver owes its robot is `runtime.drivers`. Knows no image and no policy. `sim.robots.robot` is the
same behind a world with things on a table.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.drivers.driver import Driver, DriverConfig, Reading
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.errors import ConfigError
from trimvla.sim.robots.faults import Switch

NAME = "arm"
JOINTS = 6
REACH = 1.0  # of a delta, either way: more than any control allows
SPEED = 0.5  # of each joint on its way to the safe pose [rad/s]


@dataclass(frozen=True)
class ArmConfig(DriverConfig):
    """How the arm behaves."""

    watchdog_s: float = 0.3
    """Silent for longer, its commander counts as gone, and the arm holds.

    Two or three control periods.
    """
    stale_s: float = 0.2
    """A command that was sent longer ago is not obeyed."""
    rest: tuple[float, ...] = ()
    """Its safe pose: an angle for each of the six joints [rad]; none: it stays where it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rest) not in (0, JOINTS):
            raise ConfigError(f"expected {JOINTS} numbers for 'rest', or none, got {self.rest}")


class SimArm(Driver):
    """Six joints and a gripper that follow at once."""

    def __init__(self, config: ArmConfig) -> None:
        self._config = config
        self.position = (0.0,) * JOINTS
        self.gripper = 1.0
        self._switch: Switch | None = None
        self._held: tuple[float, ...] | None = None

    @classmethod
    def describe(cls, config: DriverConfig) -> Description | None:
        """See `Driver`."""
        del config
        joint = Dimension("", "rad", "delta", -REACH, REACH, SPEED)
        gripper = Dimension("", "", "gripper", 0.0, 1.0, 1.0)
        return Description((joint,) * JOINTS + (gripper,), (Quantity(),) * JOINTS)

    @classmethod
    def published_cameras(cls, config: DriverConfig) -> Sequence[str] | None:
        """See `Driver`."""
        del config
        return ()

    def connect(self, run_dir: Path) -> None:
        """See `Driver`."""
        self._switch = Switch(run_dir, NAME)

    def read(self) -> Reading | None:
        """See `Driver`."""
        kind = self._fault()
        self._held = (self._held or self.position) if kind == "repeat" else None
        return None if kind == "mute" else (self._held or self.position, self.gripper)

    def write(self, action: Sequence[float]) -> None:
        """See `Driver`."""
        self.gripper = action[JOINTS]
        if self._fault() != "stuck":
            pairs = zip(self.position, action[:JOINTS], strict=True)
            self.position = tuple(old + delta for old, delta in pairs)

    def hold(self) -> None:
        """See `Driver`: a joint that is not commanded stays."""

    def safe_pose(self) -> Sequence[float] | None:
        """See `Driver`."""
        return (*self._config.rest, float("nan")) if self._config.rest else None

    def figures(self) -> Mapping[str, float]:
        """Where it truly is, whatever it publishes."""
        return {f"position.{i}": value for i, value in enumerate(self.position)}

    def _fault(self) -> str:
        fault = None if self._switch is None else self._switch.fault()
        return "" if fault is None else fault.kind


def run(config: ArmConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `arm`, until `stop`."""
    drive(SimArm(config), config, run_dir, stop, name=NAME)


def description(config: ArmConfig) -> Description | None:
    """See `Driver.describe`."""
    return SimArm.describe(config)
