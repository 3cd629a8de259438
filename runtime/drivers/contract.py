"""The contract of every driver, checked over real sockets; also for the tests of a user's own.

The driver is run by `drive` as in a system, and commanded to stay where it is: nothing needs to
move but on the way to its safe pose. Knows no robot and no test framework.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.bus.messages import Command, JointState, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.control.fallback import as_command
from trimvla.runtime.drivers.driver import Driver, DriverConfig, Reading, described
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.errors import ConfigError

NAME = "driver-check"
WAIT_S = 30.0  # for what comes at once on an idle machine
SAFE_AFTER_S = 0.3  # beyond the watchdog
SLACK = 1e-6
STATES = 10


@dataclass(frozen=True)
class Call:
    """One call of the driver."""

    name: str
    action: tuple[float, ...] = ()


class CallRecorder(Driver):
    """A driver that notes what another one is asked to do, and passes it on."""

    def __init__(self, driver: Driver) -> None:
        self.inner = driver
        self.calls: list[Call] = []

    def description(self, config: DriverConfig) -> Description | None:
        """See `Driver`."""
        return self.inner.description(config)

    def connect(self, run_dir: Path) -> None:
        """See `Driver`."""
        self.calls.append(Call("connect"))
        self.inner.connect(run_dir)

    def read(self) -> Reading | None:
        """See `Driver`."""
        return self.inner.read()

    def taken_ns(self) -> int | None:
        """See `Driver`."""
        return self.inner.taken_ns()

    def write(self, action: Sequence[float]) -> None:
        """See `Driver`."""
        self.calls.append(Call("write", tuple(action)))
        self.inner.write(action)

    def hold(self) -> None:
        """See `Driver`."""
        self.calls.append(Call("hold"))
        self.inner.hold()

    def safe_pose(self) -> Sequence[float] | None:
        """See `Driver`."""
        return self.inner.safe_pose()

    def refuses(self, command: Command) -> str:
        """See `Driver`."""
        return self.inner.refuses(command)

    def figures(self) -> Mapping[str, float]:
        """See `Driver`."""
        return self.inner.figures()

    def disconnect(self) -> None:
        """See `Driver`."""
        self.calls.append(Call("disconnect"))
        self.inner.disconnect()

    @property
    def written(self) -> list[tuple[float, ...]]:
        """All actions, in their order."""
        return [call.action for call in self.calls if call.name == "write"]


def check_driver(
    driver: Driver,
    config: DriverConfig,
    run_dir: Path,
    *,
    before: Callable[[Path], None] | None = None,
) -> list[str]:
    """Run a driver and check what every driver owes its robot.

    The robot is commanded to stay where it is. If it has a safe pose, it goes there twice, at the
    speed that it describes: keep its surroundings clear.

    Args:
        driver: not yet connected.
        config: as in the TOML file.
        run_dir: an empty folder for the sockets, such as pytest's `tmp_path`.
        before: is given the folder before the driver starts, for a robot that needs other
            processes.

    Returns:
        What was checked, one line each.

    Raises:
        ConfigError: the first thing that is wrong, in words.

    Example:
        >>> from pathlib import Path
        >>> from trimvla.runtime import Driver, DriverConfig, check_driver
        >>> class Arm(Driver):
        ...     read = lambda self: ((0.0,) * 6, 1.0)
        ...     write = lambda self, action: None
        ...     hold = lambda self: None
        >>> Path("check").mkdir(mode=0o700)
        >>> check_driver(Arm(), DriverConfig(watchdog_s=0.1), Path("check"))[0]
        'publishes its state at the rate of state_hz, with times of the reading'
    """
    safe_after_s = min(config.safe_after_s, config.watchdog_s + SAFE_AFTER_S)
    check = _Check(CallRecorder(driver), replace(config, safe_after_s=safe_after_s), run_dir)
    if before is not None:
        before(run_dir)
    return check.run()


class _Check:
    """One driver under examination."""

    def __init__(self, witness: CallRecorder, config: DriverConfig, run_dir: Path) -> None:
        self._witness = witness
        self._config = config
        self._run_dir = run_dir
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._done: list[str] = []
        self._sent = 0

    def run(self) -> list[str]:
        """All checks, one after the other."""
        thread = threading.Thread(target=self._drive)
        self._commands = Publisher(self._run_dir, topic("command"))
        received = [topic("robot/state"), topic(report(NAME))]
        with self._commands, Subscriber(self._run_dir, received) as self._received:
            thread.start()
            try:
                self._states()
                self._robot, _ = described(self._witness, self._config)
                self._orders()
                self._silence()
                self._end()
            finally:
                self._stop.set()
                thread.join()
        if self._failure is not None:
            raise self._failure
        self._last_calls()
        return self._done

    def _drive(self) -> None:
        try:
            drive(self._witness, self._config, self._run_dir, self._stop, name=NAME)
        except BaseException as error:  # shown by the caller's thread
            self._failure = error

    def _states(self) -> None:
        """Where it is, often enough, and never newer than it was."""
        seen: list[JointState] = []
        self._until(lambda: self._collect(seen) >= STATES, "messages on 'robot/state'")
        times = [state.time_ns for state in seen]
        self._expect(times == sorted(set(times)), "times that rise on 'robot/state'", str(times))
        count = seen[-1].sequence - seen[0].sequence  # also of those that newer ones displaced
        hz = count * NS_PER_S / (times[-1] - times[0])
        least = 0.5 * self._config.state_hz
        self._expect(hz >= least, f"at least {least:g} states a second", f"{hz:.1f}")
        state = self._state
        finite = all(math.isfinite(value) for value in (*state.position, state.gripper))
        self._expect(finite, "finite positions", str(state.position))
        self._pass("publishes its state at the rate of state_hz, with times of the reading")

    def _orders(self) -> None:
        """Once, in time, or never."""
        still = as_command(self._robot.kinds, self._state.position, self._state.gripper)
        arm = len(self._robot.kinds) - self._robot.kinds.count("gripper")
        self._expect(
            still is not None,
            f"{arm} positions, one for each dimension that is no gripper",
            str(len(self._state.position)),
        )
        self._still = tuple(still.tolist()) if still is not None else ()
        late_ns = to_ns(self._config.stale_s) + NS_PER_S
        self._ignored("stale", self._still, late_ns)
        self._ignored("misfit", (*self._still, 0.0), 0)
        self._pass("obeys no command that is stale or of another number of dimensions")
        self._until(lambda: self._count("obeyed") > 0, "a command that is obeyed", self._command)
        written = self._witness.written[-1]
        self._expect(written == self._still, f"write({self._still})", f"write({written})")
        last = self._command()
        self._until(
            lambda: self._count("repeated") > 0,
            "a repeated command to be noticed",
            lambda: self._commands.send(last),
        )
        calls = len(self._witness.written)
        self._expect(calls <= self._sent, f"at most {self._sent} calls of write()", str(calls))
        self._pass("obeys each command once")

    def _ignored(self, what: str, action: tuple[float, ...], late_ns: int) -> None:
        """Commands that must not reach the robot."""

        def send() -> None:
            time_ns = monotonic_ns() - late_ns
            self._commands.send(Command(time_ns=time_ns, episode=0, kind="action", action=action))

        self._until(lambda: self._count(what) > 0, f"a command that counts as {what}", send)
        got = len(self._witness.written)
        self._expect(got == 0, f"no command that is {what} to be obeyed", str(got))

    def _silence(self) -> None:
        """A hold, then the safe pose."""
        self._witness.calls.clear()
        self._move()
        self._until(lambda: self._report.state != "moving", "a hold when commands cease")
        self._expect(Call("hold") in self._witness.calls, "a call of hold() in silence", "none")
        self._pass("holds by itself when commands cease")
        if self._witness.safe_pose() is None:
            return
        words = "to be at its safe pose when nobody commands"
        self._until(lambda: self._report.state == "safe", words, seconds=self._config.safe_pose_s)
        self._check_way("on silence")

    def _check_way(self, when: str) -> None:
        """Every step within limits and speed."""
        calls = [call.name for call in self._witness.calls]
        held = calls.index("hold") if "hold" in calls else len(calls)
        steps = [call.action for call in self._witness.calls[held:] if call.name == "write"]
        hz = self._robot.hz or self._config.state_hz
        for earlier, later in zip([None, *steps], steps, strict=False):
            for i, part in enumerate(self._robot.commands):
                value = later[i]
                inside = part.low - SLACK <= value <= part.high + SLACK
                self._expect(
                    inside or earlier is None,
                    f"{part.low:g} to {part.high:g} in dimension {i} {when}",
                    f"{value:g}",
                )
                step = 0.0 if earlier is None else value - earlier[i]
                if part.kind == "delta":
                    step = value
                if part.kind in ("absolute", "gripper", "delta"):
                    most = part.speed / hz * (1 + SLACK) + SLACK
                    self._expect(
                        abs(step) <= most,
                        f"steps of at most {most:g} in dimension {i} {when}",
                        f"{step:g}",
                    )
        self._pass(f"goes to its safe pose {when}, within its limits and its speed")

    def _end(self) -> None:
        """Obeyed again after the pose, then stopped."""
        self._move()
        self._witness.calls.clear()
        self._stop.set()
        end = time.monotonic() + self._config.safe_pose_s + WAIT_S
        while not any(call.name == "disconnect" for call in self._witness.calls):
            if time.monotonic() > end or self._failure is not None:
                return  # what is missing is named below
            time.sleep(0.01)

    def _last_calls(self) -> None:
        names = [call.name for call in self._witness.calls]
        self._expect(names[-1:] == ["disconnect"], "disconnect() at last", str(names[-3:]))
        self._expect("hold" in names, "hold() at the end", str(names[-3:]))
        first = names.index("hold")
        if self._witness.safe_pose() is None:
            self._expect("write" not in names[first:], "no write() after the last hold()", "one")
        else:
            self._expect(names[-2] == "hold", "hold() before disconnect()", names[-2])
            self._check_way("at the end")
        self._pass("holds at the end, and is disconnected after that")

    def _command(self) -> Command:
        """One to stay where it is."""
        now = monotonic_ns()
        command = Command(time_ns=now, episode=0, kind="action", action=self._still)
        self._sent += 1
        self._commands.send(command)
        return command

    def _move(self) -> None:
        """Commands until it obeys, each to stay where it is by now."""

        def send() -> None:
            state = self._state
            still = as_command(self._robot.kinds, state.position, state.gripper)
            self._still = self._still if still is None else tuple(still.tolist())
            self._command()

        self._until(
            lambda: self._report.state == "moving", "to obey commands to stay where it is", send
        )

    @property
    def _state(self) -> JointState:
        message = self._received["robot/state"].message
        if not isinstance(message, JointState):
            self._fail("a message on 'robot/state'", "none")
        return message

    @property
    def _report(self) -> Report:
        message = self._received[report(NAME)].message
        return message if isinstance(message, Report) else Report(time_ns=0, process="", state="")

    def _count(self, name: str) -> int:
        return self._report.counters.get(name, 0)

    def _collect(self, seen: list[JointState]) -> int:
        """Take in the newest states; how many there are by now."""
        for message in self._received["robot/state"].fresh:
            if isinstance(message, JointState):
                now = monotonic_ns()
                self._expect(message.time_ns <= now, "a time that is past", "one ahead")
                seen.append(message)
        return len(seen)

    def _until(
        self,
        condition: Callable[[], bool],
        what: str,
        act: Callable[[], object] = lambda: None,
        seconds: float = 0.0,
    ) -> None:
        end = time.monotonic() + WAIT_S + seconds
        while True:
            self._received.update(0.02)
            if self._failure is not None:
                raise self._failure
            if condition():
                return
            if time.monotonic() > end:
                self._fail(what, "none")
            act()

    def _expect(self, is_so: bool, what: str, got: str) -> None:
        if not is_so:
            self._fail(what, got)

    def _fail(self, what: str, got: str) -> NoReturn:
        raise ConfigError(f"{type(self._witness.inner).__name__}: expected {what}, got {got}")

    def _pass(self, what: str) -> None:
        self._done.append(what)
