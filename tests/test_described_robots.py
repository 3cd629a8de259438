"""A robot that its driver describes is compared with bundle and control before it may move.

Each case is refused twice: before any process starts, where the description is known by then; and
by the control loop, over real sockets, with a witness on the driver to which nothing may come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.tiny_bundle import write_bundle
from trimvla.launch.system.setup.programs import check_system, programs
from trimvla.launch.system.setup.sections import read_system
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.description import Description, Dimension, Quantity, unlike_state
from trimvla.runtime.bundle.inputs_and_output import ActionKind, StateSpec
from trimvla.runtime.bundle.manifest import load
from trimvla.runtime.bus.messages import ActionChunk, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.control import process as control
from trimvla.runtime.control.controller import ControlConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.drivers.contract import CallRecorder
from trimvla.runtime.drivers.driver import Driver, DriverConfig
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.errors import BundleError, ConfigError

HERE = "tests.test_described_robots"
HZ = 10.0
NAMES = ("pan", "lift", "flex")
UNITS = ("deg", "deg", "deg")
KINDS: tuple[ActionKind, ...] = ("absolute",) * 3
TABLE = "[pan deg absolute, lift deg absolute, flex deg absolute] at 10 Hz"


@dataclass(frozen=True)
class ThreeConfig(DriverConfig):
    """Options of the arm below."""

    port: str = "/dev/null"


class Three(Driver):
    """Three joints in degrees, without a gripper."""

    def __init__(self, config: ThreeConfig) -> None:
        self.place = [0.0] * 3

    @classmethod
    def describe(cls, config: DriverConfig) -> Description:
        joints = tuple(Dimension(name, "deg", "absolute", -90.0, 90.0, 30.0) for name in NAMES)
        return Description(joints, tuple(Quantity(name, "deg") for name in NAMES), HZ)

    def read(self):
        return self.place, 1.0

    def write(self, action: Sequence[float]) -> None:
        self.place = list(action)

    def hold(self) -> None: ...


@dataclass(frozen=True)
class Case:
    """What a bundle and the control loop mean, and the words of the error."""

    words: str
    names: tuple[str, ...] = NAMES
    units: tuple[str, ...] = UNITS
    kinds: tuple[ActionKind, ...] = KINDS
    hz: float = HZ
    high: float = 90.0


CASES = {
    "swapped order": Case("same names in another order", names=("lift", "pan", "flex")),
    "radians": Case("rad instead of deg in dimension 0 (pan)", units=("rad",) * 3),
    "one in radians": Case("rad instead of deg in dimension 2 (flex)", units=("deg", "deg", "rad")),
    "a joint too few": Case(
        "2 numbers instead of 3", names=NAMES[:2], units=UNITS[:2], kinds=KINDS[:2]
    ),
    "another joint": Case("['flex'] missing; ['roll'] unknown", names=("pan", "lift", "roll")),
    "another rate": Case("30 Hz instead of 10 Hz", hz=30.0),
    "deltas": Case("delta instead of absolute in dimension 0", kinds=("delta",) * 3),
    "wider limits": Case("lie outside -90 to 90 in dimension 0 (pan)", high=100.0),
}


def limits(case: Case) -> Limits:
    return Limits((-90.0,) * len(case.kinds), (case.high,) * len(case.kinds))


@contextmanager
def running(target, *args, **kwargs) -> Iterator[threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=target, args=(*args, stop), kwargs=kwargs)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def commanded(case: Case, run_dir: Path, until: str) -> tuple[CallRecorder, str]:
    """Task and chunks for a control loop and a driver, until control's report has these words or
    the arm was written to.
    """
    config = ThreeConfig()
    witness = CallRecorder(Three(config))
    settings = ControlConfig(limits(case), case.kinds, case.hz)
    reason = ""
    with (
        Publisher(run_dir, topic("task")) as tasks,
        Publisher(run_dir, topic("chunk")) as chunks,
        Subscriber(run_dir, [topic(report("control"))]) as reports,
        running(control.run, settings, run_dir),
        running(drive, witness, config, run_dir, name="arm"),
    ):
        began = monotonic_ns()
        end = time.monotonic() + 60
        while time.monotonic() < end and until not in reason and not witness.written:
            now = monotonic_ns()
            tasks.send(Task(time_ns=now, episode=1, instruction="reach", started_ns=began))
            chunks.send(chunk(case, now))
            reports.update(0.05)
            message = reports[report("control")].message
            reason = message.reason if isinstance(message, Report) else ""
    return witness, reason


def chunk(case: Case, now: int) -> ActionChunk:
    return ActionChunk(
        time_ns=now,
        produced_ns=now,
        episode=1,
        instruction="reach",
        actions=((1.0,) * len(case.kinds),) * 32,
        control_hz=case.hz,
        kinds=case.kinds,
        names=case.names,
        units=case.units,
        valid_rows=32,
        frame_sequence=0,
        seed=(0,),
    )


@pytest.mark.parametrize("name", CASES)
def test_control_does_not_arm_for_another_robot(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    witness, reason = commanded(case, tmp_path, case.words)
    assert witness.written == []
    assert reason.count("[") >= 2, "both tables"
    assert case.words in reason
    assert TABLE in reason or "at 10 Hz" in reason


@pytest.mark.parametrize("case", [Case(""), Case("", names=(), units=())], ids=["same", "unnamed"])
def test_the_same_robot_is_commanded(case: Case, tmp_path: Path) -> None:
    """A bundle of before, which names nothing, too."""
    witness, _ = commanded(case, tmp_path, "never")
    assert witness.written


SYSTEM = """
[arm]
process = "driver"
kind = "tests.test_described_robots:Three"

[camera-front]
process = "camera"
name = "front"
kind = "synthetic"

[policy]
bundle = "{bundle}"

[control]
hz = {hz}
kinds = {kinds}

[control.limits]
low = {low}
high = {high}
"""


def system(case: Case, folder: Path, text: str = SYSTEM):
    dim = len(case.kinds)
    bundle = write_bundle(
        folder / "tiny",
        dim=dim,
        kinds=case.kinds,
        control_hz=case.hz,
        names=case.names,
        units=case.units,
    )
    found = limits(case)
    kinds = list(case.kinds)
    filled = text.format(
        bundle=bundle, hz=case.hz, kinds=kinds, low=list(found.low), high=list(found.high)
    )
    (folder / "robot.toml").write_text(filled)
    return read_system(folder / "robot.toml")


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_started_for_another_robot(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(ConfigError) as caught:
        check_system(system(case, tmp_path))
    text = str(caught.value)
    assert case.words in text and text.startswith("arm: the robot takes")
    assert TABLE in text or "at 10 Hz" in text


def test_the_same_robot_is_started(tmp_path: Path) -> None:
    sections = system(Case(""), tmp_path)
    found = {program.name: program for program in programs(sections, tmp_path)}
    assert (found["arm"].report, found["arm"].restart) == ("arm", False)
    assert found["arm"].stop_s == 10.0, "the safe pose's time is waited for"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            'kind = "tests.test_described_robots:CASES"',
            "expected a subclass of trimvla.runtime.Dri",
        ),
        ('kind = "tests.test_described_robots:Nothing"', "expected 'Nothing' in"),
        ('kind = "no_such_arm"', "expected one of "),
        ("", "expected one of "),
        ('kind = "tests.test_described_robots:Half"', "the methods hold, write"),
        ('kind = "tests.test_described_robots:Bare"', "as the annotation of 'config'"),
        (f'kind = "{HERE}:Three"\nspeed = 3', "speed"),
        (f'kind = "{HERE}:Three"\npython = "/nowhere/python"', "arm.python: expected the path of"),
        (f'kind = "{HERE}:Three"\nkinds = ["delta"]', "expected 'kinds' as the driver describes"),
        (f'kind = "{HERE}:Three"\nstate_names = ["a", "b", "c"]', "expected 'state_names' as the"),
        (f'kind = "{HERE}:Three"\nsafe_after_s = 0.1', "it holds first"),
    ],
)
def test_a_section_of_a_driver_that_is_wrong(line: str, words: str, tmp_path: Path) -> None:
    text = SYSTEM.replace('kind = "tests.test_described_robots:Three"', line)
    with pytest.raises(ConfigError, match=None) as caught:
        check_system(system(Case(""), tmp_path, text))
    assert words in str(caught.value)


class Half(Driver):
    def read(self):
        return (), 1.0


class Bare(Three):
    def __init__(self, config) -> None: ...


def test_a_state_in_another_unit_is_refused() -> None:
    robot = Three.describe(ThreeConfig())
    spec = StateSpec(names=NAMES, dim=3, padded=3, statistics="none", units=("rad",) * 3)
    assert "['rad', 'rad', 'rad'], got ['deg', 'deg', 'deg']" in unlike_state(robot, spec)
    assert unlike_state(robot, msgspec.structs.replace(spec, units=UNITS)) == ""
    assert unlike_state(robot, msgspec.structs.replace(spec, units=())) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": ("a", "b")}, "expected 3 entries for 'action.names', or none, got 2"),
        ({"names": ("a", "a", "b")}, "expected names that differ for 'action.names'"),
        ({"units": ("deg",)}, "expected 3 entries for 'action.units', or none, got 1"),
        ({"names": ("a", "", "b")}, "'action.names[1]'"),
    ],
)
def test_names_of_a_manifest_are_checked(change: dict, words: str, tmp_path: Path) -> None:
    made = load(write_bundle(tmp_path / "tiny", dim=3, kinds=KINDS))
    action = msgspec.structs.replace(made.action, **change)
    with pytest.raises(BundleError) as caught:
        bundles.check(msgspec.structs.replace(made, action=action))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dimension(low=1.0, high=0.0),
        lambda: Dimension(speed=0.0),
        lambda: Description((Dimension("a"), Dimension("a"))),
        lambda: Description((Dimension("a"), Dimension())),
        lambda: Description((Dimension(),), hz=0.0),
    ],
)
def test_a_description_that_cannot_be(make) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()
