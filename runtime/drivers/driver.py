"""A robot's driver: the few methods that a user writes for his own robot, and their settings.

`drive` (`loop`) runs one: it obeys commands, holds and moves to the safe pose for it. Knows no
robot.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import Command
from trimvla.runtime.errors import ConfigError

SIX_DELTAS_AND_GRIPPER: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
Reading = tuple[Sequence[float], float]
"""The positions, in the units that are described [else rad or m], and the gripper (1 = open)."""


@dataclass(frozen=True)
class DriverConfig:
    """What every driver is set to; a driver's own configuration adds to it.

    Example:
        >>> from dataclasses import dataclass
        >>> from trimvla.runtime import DriverConfig
        >>> @dataclass(frozen=True)
        ... class ArmConfig(DriverConfig):
        ...     port: str = "/dev/ttyUSB0"
        >>> ArmConfig(watchdog_s=0.3).port
        '/dev/ttyUSB0'
    """

    kinds: tuple[ActionKind, ...] = SIX_DELTAS_AND_GRIPPER
    """What each number of a command means to this robot, where its driver does not describe it.
    Control must be set to the same."""
    state_names: tuple[str, ...] = ()
    """What the positions that it reads are called, in order, where its driver does not describe
    them: a policy that knows its state by name is checked against them before anything moves.
    Empty: not named."""
    state_hz: float = 50.0
    """How often it publishes where it is [Hz]."""
    watchdog_s: float = 0.5
    """Without a command for so long it holds by itself. Two or three control periods."""
    stale_s: float = 0.4
    """A command that was sent longer ago is not obeyed. Two control periods."""
    safe_after_s: float = 5.0
    """Without a command for so long it goes to its safe pose, where it has one; `inf`: never."""
    safe_pose_s: float = 5.0
    """It moves there for so long at most, then it stops where it is. A system that ends waits."""

    def __post_init__(self) -> None:
        for name in ("state_hz", "watchdog_s", "stale_s", "safe_pose_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"expected a number above 0 for '{name}', got {value}")
        if not self.safe_after_s >= self.watchdog_s:
            numbers = f"{self.safe_after_s} and {self.watchdog_s}"
            raise ConfigError(
                f"expected 'safe_after_s' of at least 'watchdog_s': it holds first; got {numbers}"
            )
        if not self.kinds:
            raise ConfigError("expected at least one of 'kinds', got none")


class Driver(ABC):
    """A robot's own code. All calls come from one thread and must be short: they share its loop.

    Example:
        >>> from trimvla.runtime import Driver
        >>> class Arm(Driver):
        ...     position, gripper = (0.0,) * 6, 1.0
        ...     def read(self):
        ...         return self.position, self.gripper
        ...     def write(self, action):
        ...         self.position = tuple(p + a for p, a in zip(self.position, action[:6]))
        ...     def hold(self):
        ...         pass
        >>> arm = Arm()
        >>> arm.write((0.1, 0, 0, 0, 0, 0, 1))
        >>> arm.read()[0][0]
        0.1
    """

    @classmethod
    def describe(cls, config: DriverConfig) -> Description | None:
        """What the robot takes and gives, by its settings alone: checked before any process starts.

        None where it is not described, or only the connected robot knows it (`description`).
        """
        del config
        return None

    def description(self, config: DriverConfig) -> Description | None:
        """The same, of the connected robot."""
        return self.describe(config)

    @classmethod
    def published_cameras(cls, config: DriverConfig) -> Sequence[str] | None:
        """Names of the cameras that it publishes itself, by its settings alone: a policy that looks
        through another one is refused before any process starts.

        None: not known before it is connected. By default so for a driver with a `connect` of its
        own, which alone knows the run directory.
        """
        del config
        return () if cls.connect is Driver.connect else None

    def connect(self, run_dir: Path) -> None:  # noqa: B027 - nothing to do is allowed
        """Reach the robot, without moving it. `run_dir`: where a driver with cameras publishes."""

    @abstractmethod
    def read(self) -> Reading | None:
        """Where the robot is: its positions [rad or m, or as described], and the gripper (1 = open,
        0 = closed).

        None where nothing could be read this time: then nothing is published.
        """

    def taken_ns(self) -> int | None:
        """When what `read` gave last was true, by `monotonic_ns`, where the robot itself knows it;
        None: at the call of `read`. The same time again: nothing new, and it is not published.
        """
        return None

    @abstractmethod
    def write(self, action: Sequence[float]) -> None:
        """Execute one command, one number for each dimension; also a hold of control's."""

    @abstractmethod
    def hold(self) -> None:
        """Stop and stay: nobody commands any more. Called then, and again at the end."""

    def safe_pose(self) -> Sequence[float] | None:
        """Where the robot is put when nobody commands it: one number for each dimension of a
        command, in the state's units; not a number for one that stays.

        `write` is called with small steps towards it, at the `speed` of the description and within
        its limits. None: the robot stays where it is held.
        """
        return None

    def refuses(self, command: Command) -> str:
        """Why this command is not for this robot; empty if it is."""
        del command
        return ""

    def figures(self) -> Mapping[str, float]:
        """What else it reports of itself, by name, such as temperatures."""
        return {}

    def disconnect(self) -> None:  # noqa: B027 - nothing to do is allowed
        """Let go of the robot, after a hold and after the safe pose."""


def described(driver: Driver, config: DriverConfig) -> tuple[Description, bool]:
    """The description of a connected driver, or its settings in its place; and which.

    Raises ConfigError where the settings contradict the description.
    """
    own = driver.description(config)
    if own is None:
        dimensions = tuple(Dimension(kind=kind) for kind in config.kinds)
        state = tuple(Quantity(name) for name in config.state_names)
        return Description(dimensions, state), False
    check_settings(config, own)
    return own, True


def check_settings(config: DriverConfig, own: Description) -> None:
    """Raise ConfigError where settings contradict the driver's description of its robot."""
    if config.kinds not in (SIX_DELTAS_AND_GRIPPER, own.kinds):
        raise ConfigError(
            f"expected 'kinds' as the driver describes them, {list(own.kinds)}, or none, got"
            f" {list(config.kinds)}"
        )
    if config.state_names and own.state_names and config.state_names != own.state_names:
        raise ConfigError(
            f"expected 'state_names' as the driver describes them, {list(own.state_names)}, or"
            f" none, got {list(config.state_names)}"
        )
