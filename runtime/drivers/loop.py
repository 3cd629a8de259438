"""The loop that every driver owes its robot.

`drive` publishes where the robot is, obeys each command once, in time or never, holds by itself
when its commander falls silent, and then goes to the safe pose: nobody else can do that when the
control loop, its machine or the network is gone. Commands come from control alone, behind its gate.
Knows topics and clocks; knows no robot.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from trimvla.runtime.bus.messages import Command, Deadman, EStop, JointState
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.switches import enabling_switch, stop_button
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.drivers.driver import Driver, DriverConfig, Reading, described
from trimvla.runtime.drivers.obedience import Obedience, has_bounded_targets, known, too_far
from trimvla.runtime.drivers.safe_pose import SafeMotion, check_safe_pose
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.log_limit import LimitedLog

log = logging.getLogger(__name__)
limited_log = LimitedLog(log)
COUNTERS = ("obeyed", "lost", "repeated", "stale", "misfit", "apart", "watchdog", "safe_poses")


def drive(
    driver: Driver, config: DriverConfig, run_dir: Path, stop: threading.Event, *, name: str
) -> None:
    """Connect the driver and run it until `stop`; then, or when a call of it fails, it holds, goes
    to its safe pose and is disconnected.

    A robot that never obeyed a command is not moved. Nor is one while the emergency stop is pressed
    or the dead-man's switch released, where there are such.

    Args:
        driver: not yet connected.
        config: rates and times.
        run_dir: where the topics are.
        stop: the end.
        name: under which it reports: its section's.

    Raises:
        ConfigError: description and settings contradict each other, or a reading does not fit.

    Example:
        >>> import threading
        >>> from pathlib import Path
        >>> from trimvla.runtime import Driver, DriverConfig, drive
        >>> class Arm(Driver):
        ...     read = lambda self: ((0.0,) * 6, 1.0)
        ...     write = lambda self, action: None
        ...     hold = lambda self: print("holds")
        ...     disconnect = lambda self: print("lets go")
        >>> run_dir, stop = Path("run"), threading.Event()
        >>> run_dir.mkdir(mode=0o700)
        >>> stop.set()  # nothing to do: the end is a hold
        >>> drive(Arm(), DriverConfig(), run_dir, stop, name="arm")
        holds
        lets go
    """
    try:
        driver.connect(run_dir)
        with ExitStack() as stack:
            _begin(driver, config, run_dir, name, stack).run(stop)
    finally:
        driver.disconnect()


def _begin(
    driver: Driver, config: DriverConfig, run_dir: Path, name: str, stack: ExitStack
) -> _Loop:
    """The loop of a connected driver, which holds where there can be none."""
    try:
        return _Loop(driver, config, run_dir, name, stack)
    except BaseException:
        with suppress(Exception):  # the first error is the one to be shown
            driver.hold()
        raise


class _Loop:
    """The driver behind its topics."""

    def __init__(
        self, driver: Driver, config: DriverConfig, run_dir: Path, name: str, stack: ExitStack
    ) -> None:
        self._driver = driver
        self._config = config
        self._robot, own = described(driver, config)
        self._names = self._robot.state_names
        self._description = self._robot if own else None
        pose = driver.safe_pose()
        if pose is not None:
            check_safe_pose(self._robot, pose)
        self._hz = self._robot.hz or config.state_hz
        self._period_ns = to_ns(1 / config.state_hz)
        self._next_ns = 0
        self._published_ns = 0
        """The time of the last state."""
        self._motion: SafeMotion | None = None
        self._step_ns = 0
        """When the next step to the safe pose is due."""
        self._end_ns = 0
        """Until when it may go there."""
        self._placed = False
        """Whether commands follow on each other: the next may be obeyed wherever it leads."""
        self._stopped = False
        """Whether a person stopped the robot, and no action came since."""
        self._last: Command | None = None
        self._obedience = Obedience(config, len(self._robot.commands))
        self._telemetry = Telemetry(name)
        self._telemetry.counters.update(dict.fromkeys(COUNTERS, 0))
        self._telemetry.state = "waiting"
        self._reporter = Reporter(run_dir, self._telemetry)
        stack.callback(self._reporter.close)
        self._states = Publisher(run_dir, topic("robot/state", config.state_hz))
        stack.callback(self._states.close)
        topics = [topic("command"), topic("estop"), topic("deadman")]
        self._inputs = Subscriber(run_dir, topics)
        stack.callback(self._inputs.close)
        self._reporter.inputs = self._inputs

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; then hold and go to the safe pose."""
        try:
            while not stop.is_set():
                self.turn()
        except BaseException as error:
            log.error("a call of the driver failed: it holds, and goes to its safe pose: %s", error)
            for last in (self._halt, self._go_home):  # each as far as the robot still obeys
                with suppress(Exception):  # the first error is the one to be shown
                    last()
            raise
        self._halt()
        self._go_home()

    def turn(self, obeys: bool = True) -> None:
        """Wait for commands until something is due; obey, watch, publish."""
        due_ns = self._next_ns if self._motion is None else min(self._next_ns, self._step_ns)
        self._inputs.update(max(0.0, (due_ns - monotonic_ns()) / NS_PER_S))
        self._stopped |= self._held_back()
        for command in self._inputs["command"].fresh:
            if obeys and isinstance(command, Command):
                self._obey(command)
        self._watch()
        now = monotonic_ns()
        if now >= self._next_ns:
            self._next_ns = max(self._next_ns, now - NS_PER_S) + self._period_ns
            self._publish()
        self._reporter.beat()

    def _obey(self, command: Command) -> None:
        verdict = self._obedience.judge(command, monotonic_ns())
        self._note_sequence(command)
        if verdict != "obeyed":
            self._telemetry.count(verdict)
            return
        if reason := self._apart(command) or self._driver.refuses(command):
            self._telemetry.count("apart")
            self._telemetry.reason = reason
            limited_log.warning("apart", "did not obey: %s", reason)
            return
        self._telemetry.count("obeyed")
        self._telemetry.reason = ""
        self._obedience.obey(monotonic_ns())
        self._motion = None
        self._placed = True
        if command.kind == "action":
            self._stopped = self._held_back()
        self._telemetry.state = "moving" if command.kind == "action" else "holding"
        self._driver.write(command.action)

    def _note_sequence(self, command: Command) -> None:
        """Count what is missing between two commands, and note their distance in time."""
        before = self._last
        if before is not None and before.sequence < command.sequence:
            self._telemetry.count("lost", command.sequence - before.sequence - 1)
            if command.sequence == before.sequence + 1:
                self._telemetry.time_ns("command_period", command.time_ns - before.time_ns)
        self._last = command

    def _apart(self, command: Command) -> str:
        """Why a first command, or the first after an interruption, leads too far."""
        if self._placed or not has_bounded_targets(self._robot):
            return ""
        reading = self._driver.read()
        if reading is None or not known(*reading):
            return "expected to know where the robot is before a first command"
        return too_far(self._robot, command.action, *reading, self._config.watchdog_s)

    def _watch(self) -> None:
        """Hold when nobody commands; after a while, go to the safe pose."""
        now = monotonic_ns()
        if self._obedience.must_hold(now):
            self._telemetry.count("watchdog")
            self._placed = False
            self._stop_moving("nobody commands")
        if self._obedience.must_leave(now):
            self._leave()
        if self._motion is not None and now >= self._step_ns:
            self._step(now)

    def _leave(self) -> None:
        """Begin to go to the safe pose, if there is one and nothing forbids it."""
        pose = self._driver.safe_pose()
        if pose is None or not self._obedience.obeyed:
            return
        reading = self._driver.read()
        if self._stopped:
            self._telemetry.reason = "stopped by a person: not moved to the safe pose"
        elif reading is None or not known(*reading):
            self._telemetry.reason = "its position is not known: not moved to the safe pose"
        else:
            self._motion = SafeMotion(self._robot, self._hz, pose, reading)
            self._placed = False
            self._step_ns = monotonic_ns()
            self._end_ns = self._step_ns + to_ns(self._config.safe_pose_s)
            self._telemetry.count("safe_poses")
            self._telemetry.state = "leaving"
            self._telemetry.reason = "goes to its safe pose"
            return
        log.warning("%s", self._telemetry.reason)

    def _step(self, now: int) -> None:
        """One command on the way to the safe pose."""
        self._step_ns = max(self._step_ns, now - NS_PER_S // 10) + to_ns(1 / self._hz)
        action = None if self._motion is None else self._motion.next()
        if self._stopped:
            self._stop_moving("stopped by a person on the way to the safe pose")
        elif now >= self._end_ns:
            words = f"not at its safe pose after {self._config.safe_pose_s:g} s: stopped"
            self._stop_moving(words)
        elif action is None:
            self._stop_moving("at its safe pose")
            self._telemetry.state = "safe"
        else:
            self._driver.write(tuple(action.tolist()))

    def _stop_moving(self, reason: str) -> None:
        self._motion = None
        self._telemetry.state = "holding"
        self._telemetry.reason = reason
        self._driver.hold()

    def _held_back(self) -> bool:
        """Whether a person's switch, where there is one, lets nothing move."""
        button = stop_button(self._inputs["estop"])
        if isinstance(button, EStop) and button.pressed:
            return True
        switch = self._inputs["deadman"]
        held = enabling_switch(switch)
        return switch.message is not None and not (
            switch.alive and isinstance(held, Deadman) and held.held
        )

    def _halt(self) -> None:
        """The end: nothing is obeyed from now on."""
        self._obedience.end()
        self._stop_moving("ends")

    def _go_home(self) -> None:
        """The safe pose, while state and report go on."""
        self._leave()
        while self._motion is not None:
            self.turn(obeys=False)

    def _publish(self) -> None:
        self._telemetry.values.update(self._driver.figures())
        now = monotonic_ns()  # before the reading: never newer than it was
        reading = self._driver.read()
        taken_ns = self._driver.taken_ns()
        time_ns = now if taken_ns is None else min(now, taken_ns)
        if reading is not None and time_ns > self._published_ns:
            self._published_ns = time_ns
            self._states.send(self._state(time_ns, reading))

    def _state(self, time_ns: int, reading: Reading) -> JointState:
        position, gripper = reading
        values = tuple(float(each) for each in position)
        names = self._names
        if names and len(names) != len(values):
            raise ConfigError(
                f"expected positions of 'state_names', {list(names)}, got {len(values)} numbers"
            )
        return JointState(
            time_ns=time_ns,
            position=values,
            gripper=float(gripper),
            names=names,
            description=self._description,
        )
