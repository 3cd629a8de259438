"""A robot's driver: a few methods of the user's own, and the loop that every driver owes its robot.

`drive` publishes where the robot is, obeys each command once, in time or never, and holds by
itself when its commander falls silent: nobody else can do that when the control loop, its machine
or the network is gone. Commands come from control alone, behind its gate. Knows topics and clocks;
knows no robot. `sim/robots/arm.py` is the same for a simulated arm, with faults.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import Command, JointState
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError

SIX_DELTAS_AND_GRIPPER: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
Verdict = Literal["obeyed", "repeated", "stale", "misfit"]


class Driver(Protocol):
    """A robot's own code. All calls come from one thread and must be short: they share its loop.

    Example:
        >>> from trimvla.runtime import Driver
        >>> class Arm:
        ...     position, gripper = (0.0,) * 6, 1.0
        ...     def read(self):
        ...         return self.position, self.gripper
        ...     def write(self, action):
        ...         self.position = tuple(p + a for p, a in zip(self.position, action[:6]))
        ...     def hold(self):
        ...         pass
        ...     def close(self):
        ...         pass
        >>> arm: Driver = Arm()
        >>> arm.write((0.1, 0, 0, 0, 0, 0, 1))
        >>> arm.read()[0][0]
        0.1
    """

    def read(self) -> tuple[Sequence[float], float]:
        """Where the robot is: its position [rad or m], and the gripper (1 = open, 0 = closed)."""
        ...

    def write(self, action: Sequence[float]) -> None:
        """Execute one command, one number for each of the kinds; also a hold of control's."""
        ...

    def hold(self) -> None:
        """Stop and stay: nobody commands any more. Called then, and again at the end."""
        ...

    def close(self) -> None:
        """Let go of the robot, after a hold."""
        ...


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
    """What each number of a command means to this robot. Control must be set to the same."""
    state_names: tuple[str, ...] = ()
    """What the positions that it reads are called, in order: a policy that knows its state by name
    is checked against them before anything moves. Empty: not named."""
    state_hz: float = 50.0
    """How often it publishes where it is [Hz]."""
    watchdog_s: float = 0.5
    """Without a command for so long it holds by itself. Two or three control periods."""
    stale_s: float = 0.4
    """A command that was sent longer ago is not obeyed. Two control periods."""

    def __post_init__(self) -> None:
        for name in ("state_hz", "watchdog_s", "stale_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"expected a number above 0 for '{name}', got {value}")
        if not self.kinds:
            raise ConfigError("expected at least one of 'kinds', got none")


class Obedience:
    """Which commands are obeyed, and when a driver must hold by itself. Pure."""

    def __init__(self, config: DriverConfig) -> None:
        self._config = config
        self._last: Command | None = None
        self._obeyed_ns = 0
        self.moving = False
        """Whether the robot may still be moving for a command."""

    def judge(self, command: Command, now_ns: int) -> Verdict:
        """What becomes of a command. One that is repeated or stale is no sign of life."""
        if self._last is not None and command.time_ns <= self._last.time_ns:
            return "repeated"
        self._last = command
        if now_ns - command.time_ns > to_ns(self._config.stale_s):
            return "stale"
        if len(command.action) != len(self._config.kinds):
            return "misfit"
        self._obeyed_ns = now_ns
        self.moving = True
        return "obeyed"

    def must_hold(self, now_ns: int) -> bool:
        """True at the moment when the commander has been silent for too long; then not again."""
        silent = self.moving and now_ns - self._obeyed_ns > to_ns(self._config.watchdog_s)
        if silent:
            self.moving = False
        return silent


def drive(
    driver: Driver, config: DriverConfig, run_dir: Path, stop: threading.Event, *, name: str
) -> None:
    """Run the driver until `stop`; then, or when a call of it fails, it holds and is closed.

    Args:
        driver: connected to its robot.
        config: rates and times.
        run_dir: where the topics are.
        stop: the end.
        name: under which it reports: its section's.

    Example:
        >>> import threading
        >>> from pathlib import Path
        >>> from trimvla.runtime import DriverConfig, drive
        >>> class Arm:
        ...     read = lambda self: ((0.0,) * 6, 1.0)
        ...     write = lambda self, action: None
        ...     hold = lambda self: print("holds")
        ...     close = lambda self: print("lets go")
        >>> run_dir, stop = Path("run"), threading.Event()
        >>> run_dir.mkdir(mode=0o700)
        >>> stop.set()  # nothing to do: the end is a hold
        >>> drive(Arm(), DriverConfig(), run_dir, stop, name="arm")
        holds
        lets go
    """
    try:
        with ExitStack() as stack:
            loop = _Loop(driver, config, run_dir, name, stack)
            while not stop.is_set():
                loop.turn()
    finally:
        try:
            driver.hold()
        finally:
            driver.close()


class _Loop:
    """The driver behind its topics."""

    def __init__(
        self, driver: Driver, config: DriverConfig, run_dir: Path, name: str, stack: ExitStack
    ) -> None:
        self._driver = driver
        self._names = config.state_names
        self._period_ns = to_ns(1 / config.state_hz)
        self._next_ns = 0
        self._obedience = Obedience(config)
        self._telemetry = Telemetry(name)
        self._telemetry.counters.update(obeyed=0, repeated=0, stale=0, misfit=0, watchdog=0)
        self._reporter = Reporter(run_dir, self._telemetry)
        stack.callback(self._end)
        self._states = Publisher(run_dir, topic("robot/state", config.state_hz))
        stack.callback(self._states.close)
        self._commands = Subscriber(run_dir, [topic("command")])
        stack.callback(self._commands.close)
        self._reporter.inputs = self._commands

    def turn(self) -> None:
        """Wait for commands until the next state is due; obey, watch, publish."""
        self._commands.update(max(0.0, (self._next_ns - monotonic_ns()) / NS_PER_S))
        for command in self._commands["command"].fresh:
            if isinstance(command, Command):
                self._obey(command)
        if self._obedience.must_hold(monotonic_ns()):
            self._telemetry.count("watchdog")
            self._driver.hold()
        now = monotonic_ns()
        if now >= self._next_ns:
            self._next_ns = max(self._next_ns, now - NS_PER_S) + self._period_ns
            self._states.send(self._state())
        self._telemetry.state = "moving" if self._obedience.moving else "holding"
        self._reporter.beat()

    def _obey(self, command: Command) -> None:
        verdict = self._obedience.judge(command, monotonic_ns())
        self._telemetry.count(verdict)
        if verdict == "obeyed":
            self._driver.write(command.action)

    def _state(self) -> JointState:
        """Where the robot is, with the time before the reading: never newer than it was."""
        now = monotonic_ns()
        position, gripper = self._driver.read()
        values = tuple(float(each) for each in position)
        names = self._names
        if names and len(names) != len(values):
            raise ConfigError(
                f"expected positions of 'state_names', {list(names)}, got {len(values)} numbers"
            )
        return JointState(time_ns=now, position=values, gripper=float(gripper), names=names)

    def _end(self) -> None:
        self._telemetry.state = "holding"
        self._reporter.close()
