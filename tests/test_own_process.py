"""A process of one's own in a system: its options and the meaning of its actions are checked."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimvla.launch.system.setup.own_process import OwnProcess
from trimvla.launch.system.setup.programs import check_system, programs
from trimvla.launch.system.setup.sections import complete, configure, read_system, reports_of
from trimvla.runtime.drivers.driver import DriverConfig
from trimvla.runtime.errors import ConfigError

HERE = "tests.test_own_process"
CALLS: list[tuple[Any, ...]] = []


@dataclass(frozen=True)
class ArmConfig(DriverConfig):
    port: str = "/dev/ttyUSB0"
    speed: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.speed <= 0:
            raise ConfigError(f"expected 'speed' above 0, got {self.speed}")


def run(config: ArmConfig, run_dir: Path, stop: threading.Event, name: str) -> None:
    CALLS.append((config, run_dir, stop, name))


def without_config(config, run_dir, stop, name):
    pass


def of_numbers(config: int, run_dir: Path, stop: threading.Event, name: str) -> None: ...


def of_nowhere(config: "Nowhere", run_dir: Path, stop: threading.Event, name: str) -> None: ...  # noqa: F821, UP037  # pyright: ignore


def of_three(config: ArmConfig, run_dir: Path, stop: threading.Event) -> None: ...


SYSTEM = """
[arm]
process = "{process}"
{settings}
[control]
[control.limits]
low = [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.0]
high = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
[metrics]
port = 0
"""


def write(tmp_path: Path, process: str = f"{HERE}:run", settings: str = "") -> Path:
    path = tmp_path / "own.toml"
    path.write_text(SYSTEM.format(process=process, settings=settings))
    return path


def test_its_options_are_its_dataclass(tmp_path: Path) -> None:
    sections = read_system(
        write(tmp_path, settings='port = "/dev/ttyACM1"\nstate_hz = 20.0'), ["arm.speed=0.5"]
    )
    own, config = configure("arm", sections["arm"])
    assert (config.port, config.state_hz, config.speed) == ("/dev/ttyACM1", 20.0, 0.5)
    own.run(config, tmp_path, threading.Event())
    module = __import__(HERE, fromlist=["CALLS"])
    assert module.CALLS[-1][0] == config
    assert module.CALLS[-1][3] == "arm", "the name that it reports under"


def test_who_watches_knows_it_by_its_section(tmp_path: Path) -> None:
    sections = read_system(write(tmp_path))
    assert list(reports_of(sections).values()) == ["arm", "control", "metrics"]
    assert complete("metrics", sections)["processes"] == ["arm", "control"]
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    arm = next(program for program in programs(sections, run_dir) if program.name == "arm")
    assert (arm.report, arm.matters, arm.restart) == ("arm", True, False)
    loose = read_system(write(tmp_path, settings="matters = false\nrestart = true"))
    arm = next(program for program in programs(loose, run_dir) if program.name == "arm")
    assert (arm.matters, arm.restart) == (False, True)


@pytest.mark.parametrize(
    ("process", "settings", "words"),
    [
        (f"{HERE}:run", "sped = 1.0", "arm: sped: unknown, expected one of kinds, state_names"),
        (f"{HERE}:run", "speed = 0.0", "arm: expected 'speed' above 0, got 0.0"),
        (f"{HERE}:run", "speed = 'fast'", "arm: speed: expected `float`"),
        (f"{HERE}:run", "stale_s = -1.0", "expected a number above 0 for 'stale_s', got -1.0"),
        (f"{HERE}:run", "kinds = ['turn']", "arm: kinds: invalid enum value 'turn'"),
        (f"{HERE}:run", "restart = 1", "arm: expected true or false for 'restart', got 1"),
        (f"{HERE}:runs", "", "'runs' in 'tests.test_own_process', found none; did you mean 'run'?"),
        ("no_such_pkg:run", "", "arm.process: expected a module 'no_such_pkg'"),
        (f"{HERE}:CALLS", "", "arm.process: expected a function (config, run_dir,"),
        (f"{HERE}:of_three", "", "expected a function (config, run_dir, stop, name), got"),
        (f"{HERE}:without_config", "", "annotation of 'config', its options, got None"),
        (f"{HERE}:of_numbers", "", "annotation of 'config', its options, got <class"),
        (f"{HERE}:of_nowhere", "", "config: name 'Nowhere' is not defined"),
        ("hand", "", "arm: expected 'process' as one of camera"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_error_that_names_it(
    process: str, settings: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_system(write(tmp_path, process, settings))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_driver_of_other_kinds_is_refused_before_anything_starts(tmp_path: Path) -> None:
    kinds = str(["absolute"] * 6 + ["gripper"])
    sections = read_system(write(tmp_path, settings=f"kinds = {kinds}"))
    words = r"arm: expected kinds \[6 delta, gripper\], as control commands .*, got \[6 absolute"
    with pytest.raises(ConfigError, match=words):
        check_system(sections)


def test_two_of_them_have_two_names(tmp_path: Path) -> None:
    sections = {"left": {"process": f"{HERE}:run"}, "right": {"process": f"{HERE}:run"}}
    assert reports_of(sections) == {"left": "left", "right": "right"}
    assert OwnProcess(f"{HERE}:run", "left").config.__name__ == "ArmConfig"
