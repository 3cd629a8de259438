"""What every driver owes its robot: on those that come with the program, and on faulty ones."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.bundle.inputs_and_output import ActionKind
from trimvla.runtime.bus.messages import Command, Deadman, EStop, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.drivers.contract import CallRecorder, check_driver
from trimvla.runtime.drivers.driver import Driver, DriverConfig
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.errors import ConfigError
from trimvla.sim.robots.arm import ArmConfig, SimArm

QUICK = DriverConfig(watchdog_s=0.1, stale_s=0.5, safe_after_s=0.2, safe_pose_s=5.0)
SPEED = 4.0
HZ = 50.0


class Slider(Driver):
    """Two targets and a gripper, with a safe pose."""

    kind: ActionKind = "absolute"
    pose: tuple[float, ...] | None = (0.5, -0.5, math.nan)

    def __init__(self, config: DriverConfig) -> None:
        self.config = config
        self.place = [0.0, 0.0]
        self.grip = 0.3

    @classmethod
    def describe(cls, config: DriverConfig) -> Description:
        joints = tuple(
            Dimension(name, "rad", cls.kind, -1.0, 1.0, SPEED) for name in ("pan", "lift")
        )
        grip = Dimension("gripper", "", "gripper", 0.0, 1.0, SPEED)
        state = (Quantity("pan", "rad"), Quantity("lift", "rad"))
        return Description((*joints, grip), state, HZ)

    def read(self):
        return self.place, self.grip

    def write(self, action: Sequence[float]) -> None:
        self.place = list(action[:2])
        self.grip = action[2]

    def hold(self) -> None: ...

    def safe_pose(self):
        return self.pose


class Deltas(Slider):
    kind: ActionKind = "delta"

    def write(self, action: Sequence[float]) -> None:
        self.place = [old + new for old, new in zip(self.place, action[:2], strict=True)]
        self.grip = action[2]


class Speeds(Deltas):
    """A velocity goes on until the next command: here for as long as until the next at HZ."""

    kind: ActionKind = "velocity"

    def write(self, action: Sequence[float]) -> None:
        self.place = [old + new / HZ for old, new in zip(self.place, action[:2], strict=True)]
        self.grip = action[2]


@pytest.mark.parametrize(
    "driver",
    [
        Slider(QUICK),
        Deltas(QUICK),
        Speeds(QUICK),
        SimArm(ArmConfig(rest=(0.2,) * 6)),
        SimArm(ArmConfig()),
    ],
    ids=["targets", "deltas", "velocities", "sim-arm with a rest", "sim-arm"],
)
def test_a_driver_keeps_its_contract(driver: Driver, tmp_path: Path) -> None:
    config = ArmConfig(rest=(0.2,) * 6) if isinstance(driver, SimArm) else QUICK
    done = check_driver(driver, config, tmp_path)
    assert len(done) >= 5
    if isinstance(driver, Slider):
        assert driver.place == pytest.approx([0.5, -0.5], abs=1e-6)
        assert driver.grip == 0.3, "what it holds it keeps"


class Short(Slider):
    def read(self):
        return self.place[:1], self.grip


class Wild(Slider):
    """Its pose lies beyond its own limits."""

    pose = (2.0, 0.0, math.nan)


class Endless(Slider):
    """No bound to its speed."""

    @classmethod
    def describe(cls, config: DriverConfig) -> Description:
        return Description((Dimension(), Dimension(), Dimension(kind="gripper")))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Short, "expected positions of 'state_names', .'pan', 'lift'., got 1 numbers"),
        (Wild, "-1 to 1 for the safe pose in dimension 0, got 2"),
        (Endless, "finite 'low', 'high' and 'speed' in the description"),
    ],
)
def test_a_driver_that_breaks_it_is_named(kind: type[Slider], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        check_driver(kind(QUICK), QUICK, tmp_path)


class Bench:
    """One driver in a thread, with the desk of a person beside it."""

    def __init__(self, driver: Driver, run_dir: Path, config: DriverConfig = QUICK) -> None:
        self.witness = CallRecorder(driver)
        self.stop = threading.Event()
        self.run_dir = run_dir
        self._thread = threading.Thread(target=self._drive, args=(config,))
        self.failure: BaseException | None = None

    def _drive(self, config: DriverConfig) -> None:
        try:
            drive(self.witness, config, self.run_dir, self.stop, name="arm")
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> Bench:
        self.commands = Publisher(self.run_dir, topic("command"))
        self.reports = Subscriber(self.run_dir, [topic(report("arm"))])
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.end()
        self.commands.close()
        self.reports.close()

    def end(self) -> None:
        self.stop.set()
        self._thread.join()

    @property
    def report(self) -> Report:
        self.reports.update(0.01)
        found = self.reports[report("arm")].message
        return found if isinstance(found, Report) else Report(time_ns=0, process="", state="")

    def send(self, *action: float, kind: str = "action") -> None:
        self.commands.send(
            Command(time_ns=monotonic_ns(), episode=0, kind=kind, action=action)  # pyright: ignore
        )

    def until(self, condition: Callable[[], bool], act: Callable[[], object] = bool) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            act()
            time.sleep(0.01)

    def move(self) -> None:
        self.until(lambda: self.report.state == "moving", lambda: self.send(0.1, 0.1, 0.3))


def test_what_never_obeyed_is_not_moved(tmp_path: Path) -> None:
    with Bench(Slider(QUICK), tmp_path) as bench:
        bench.until(lambda: bench.report.state == "waiting")
    assert bench.witness.written == []


@pytest.mark.parametrize(
    "word",
    [EStop(time_ns=0, pressed=True), Deadman(time_ns=0, held=False)],
    ids=["estop", "deadman"],
)
def test_a_person_who_stops_it_stops_the_safe_pose_too(
    word: EStop | Deadman, tmp_path: Path
) -> None:
    """Pressed, or let go, while it is commanded: at the end it stays where it is held."""
    name = "estop" if isinstance(word, EStop) else "deadman"
    with Publisher(tmp_path, topic(name)) as desk, Bench(Slider(QUICK), tmp_path) as bench:
        bench.move()
        bench.until(
            lambda: "stopped by a person" in bench.report.reason,
            lambda: desk.send(
                EStop(time_ns=monotonic_ns(), pressed=True)
                if name == "estop"
                else Deadman(time_ns=monotonic_ns(), held=False)
            ),
        )
        bench.end()
    held = [call.name for call in bench.witness.calls]
    assert "write" not in held[held.index("hold") :]


def test_a_commander_that_comes_back_with_an_old_target_is_not_obeyed(tmp_path: Path) -> None:
    """After the safe pose, the control loop goes on from a place where the robot no longer is."""
    slow = DriverConfig(watchdog_s=0.05, stale_s=0.5, safe_after_s=0.1)
    with Bench(Slider(slow), tmp_path, slow) as bench:
        bench.move()
        bench.until(lambda: bench.report.state == "safe")
        writes = len(bench.witness.written)
        bench.until(
            lambda: bench.report.counters["apart"] > 0,
            lambda: bench.send(0.1, 0.1, 0.3, kind="hold"),
        )
        assert len(bench.witness.written) == writes
        assert "expected a first target within 0.2 of 0.5 in dimension 0, got 0.1" in (
            bench.report.reason
        )
        bench.until(lambda: bench.report.state == "moving", lambda: bench.send(0.45, -0.45, 0.3))


def test_it_moves_for_its_bounded_time_and_no_longer(tmp_path: Path) -> None:
    """A pose that cannot be reached in time: it stops on the way."""
    short = DriverConfig(watchdog_s=0.05, stale_s=0.5, safe_after_s=0.1, safe_pose_s=0.05)
    driver = Slider(short)
    with Bench(driver, tmp_path, short) as bench:
        bench.move()
        bench.until(lambda: "not at its safe pose after 0.05 s" in bench.report.reason)
        assert 0.1 <= driver.place[0] < 0.5


class Broken(Slider):
    """Its bus fails for a while: nothing can be read."""

    broken = False

    def read(self):
        if self.broken:
            raise OSError("no answer")
        return super().read()


def test_a_lost_connection_ends_in_a_hold_and_a_disconnect(tmp_path: Path) -> None:
    driver = Broken(QUICK)
    with Bench(driver, tmp_path) as bench:
        bench.move()
        driver.broken = True
        bench.until(lambda: bench.failure is not None)
    assert str(bench.failure) == "no answer"
    assert [call.name for call in bench.witness.calls][-2:] == ["hold", "disconnect"]
