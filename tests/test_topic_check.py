"""What a policy waits for and nobody sends is one error before anything starts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import several_cameras_bundle
from trimvla.launch import cli
from trimvla.launch.system.setup.programs import check_system, programs
from trimvla.launch.system.setup.sections import configure, read_system
from trimvla.launch.system.setup.topic_check import Outside, published_topics
from trimvla.runtime.bus.claim import socket_path
from trimvla.runtime.bus.network import Network, RemoteTopic, install
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.drivers.driver import Driver, DriverConfig
from trimvla.runtime.errors import ConfigError

PATIENCE_S = 30.0
HERE = "tests.test_topic_check"
CAMERAS = """
[camera-front]
process = "camera"
kind = "synthetic"
name = "front"

[camera-wrist]
process = "camera"
kind = "synthetic"
name = "wrist"
"""
POLICY = """
[policy]
bundle = '{bundle}'
cameras = {{ camera1 = "front", camera2 = "wrist" }}
"""
ARM = f"""
[arm]
process = "driver"
kind = "{HERE}:%s"
"""
CLOSED = Outside(run_dir_is_known=False)


class Blind(Driver):
    """Four joints and a gripper, no camera."""

    def __init__(self, config: DriverConfig) -> None:
        del config

    def read(self) -> tuple[tuple[float, ...], float]:
        return (0.0,) * 4, 1.0

    def write(self, action: Sequence[float]) -> None:
        """It stands still."""

    def hold(self) -> None:
        """It stands still."""


class Seeing(Blind):
    """It may have cameras: who knows?"""

    def connect(self, run_dir: Path) -> None:
        """Reach it."""


class Declared(Seeing):
    """It says which."""

    @classmethod
    def published_cameras(cls, config: DriverConfig) -> Sequence[str] | None:
        return ("wrist",)


class Nonsense(Seeing):
    """It says no names."""

    @classmethod
    def published_cameras(cls, config: DriverConfig) -> Sequence[str] | None:
        return "wrist"


def own_process(config: DriverConfig, run_dir: Path, stop: threading.Event, name: str) -> None:
    """It may publish anything."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two cameras and a state."""
    return several_cameras_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "two")


def write(folder: Path, bundle: Path, text: str) -> Path:
    path = folder / "system.toml"
    path.write_text(text + POLICY.format(bundle=bundle))
    return path


FRONT, MIDDLE, _ = CAMERAS.partition("[camera-wrist]")
MISSPELT = CAMERAS.replace('"wrist"', '"wirst"')
OWN = f'[mine]\nprocess = "{HERE}:own_process"\n'
SIM = '[camera-wrist]\nprocess = "sim-camera"\nname = "wrist"\n'
SIM_ROBOT = '[robot]\nprocess = "sim-robot"\n'
LEROBOT = (
    '[arm]\nprocess = "driver"\nkind = "lerobot"\n'
    'options = {{ cameras = {{ {} = {{ type = "opencv" }} }} }}\n'
)
ELSEWHERE = Outside(("wrist/color", "robot/state"), run_dir_is_known=False)
BEHIND = "nobody publishes 'wrist'"
STATE = "policy: expected a section that publishes 'robot/state', got none of ['camera-front'"


@pytest.mark.parametrize(
    ("text", "outside", "words"),
    [
        (CAMERAS + ARM % "Blind", CLOSED, ""),
        (FRONT + ARM % "Blind", CLOSED, BEHIND),
        (FRONT + ARM % "Blind", Outside(), BEHIND),
        (MISSPELT, Outside(), "got 'front' (camera-front), 'wirst' (camera-wrist): " + BEHIND),
        ("", Outside(), ""),
        ("", CLOSED, "got none: nobody publishes 'front', 'wrist'"),
        (ARM % "Blind", CLOSED, "got none: nobody publishes 'front', 'wrist'"),
        (FRONT + ARM % "Seeing", CLOSED, ""),
        (FRONT + ARM % "Declared", CLOSED, ""),
        (MISSPELT + ARM % "Declared", CLOSED, ""),
        (ARM % "Declared", Outside(), "got 'wrist' (arm): nobody publishes 'front'"),
        (ARM % "Nonsense", CLOSED, "expected names of cameras of 'published_cameras', got 'wrist'"),
        (CAMERAS + ARM % "Declared", CLOSED, "one section that publishes 'wrist/color'"),
        (FRONT + OWN, CLOSED, ""),
        (FRONT, ELSEWHERE, ""),
        (FRONT, Outside(("wrst/color", "robot/state")), "'wrst' (--network): " + BEHIND),
        (CAMERAS, CLOSED, STATE),
        (CAMERAS, Outside(), ""),
        (FRONT + SIM + ARM % "Blind", CLOSED, "camera-wrist: expected a section that publishes 's"),
        (FRONT + SIM + SIM_ROBOT, CLOSED, ""),
        (CAMERAS + SIM_ROBOT + ARM % "Blind", CLOSED, "one section that publishes 'robot/state'"),
        (CAMERAS + '[arm]\nprocess = "sim-arm"\n', CLOSED, "arm: expected 5 numbers of"),
        (FRONT + LEROBOT.format("wirst"), Outside(), "'wirst' (arm): " + BEHIND),
        (FRONT + LEROBOT.format("wrist"), CLOSED, ""),
        (FRONT + LEROBOT.format("wirst") + 'type = "some_plugin"\n', CLOSED, ""),
    ],
)
def test_who_sends_what_the_policy_waits_for(
    text: str, outside: Outside, words: str, bundle: Path, tmp_path: Path
) -> None:
    sections = read_system(write(tmp_path, bundle, text))
    if not words:
        check_system(sections, outside=outside)
        return
    with pytest.raises(ConfigError) as caught:
        check_system(sections, outside=outside)
    assert words in str(caught.value)


def test_a_run_with_a_wrong_cameras_name_starts_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, bundle, MISSPELT + ARM % "Blind")
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    for where in ((), ("--run-dir", str(run_dir))):
        assert cli.main(["run", str(path), "--seconds", "30", "--json", *where]) == 1
        error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
        assert "each of ['front', 'wrist'], got 'front' (camera-front), 'wirst'" in error
    assert not list(run_dir.iterdir())


def test_a_camera_of_another_program_is_declared(bundle: Path, tmp_path: Path) -> None:
    path = write(tmp_path, bundle, FRONT)
    check_system(read_system(path, ['policy.outside_cameras=["wrist"]']))
    with pytest.raises(ConfigError, match=r"\['front', 'wrist'\] for 'outside_cameras', got"):
        read_system(path, ['policy.outside_cameras=["wirst"]'])


def test_the_network_of_a_run_directory_counts(bundle: Path, tmp_path: Path) -> None:
    sections = read_system(write(tmp_path, bundle, FRONT))
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=BEHIND):
        programs(sections, run_dir)
    install(Network({"wrist/color": RemoteTopic("tcp://127.0.0.1:5601")}), run_dir)
    assert programs(sections, run_dir)


def test_the_widowx_publishes_its_one_camera() -> None:
    section = {"process": "driver", "kind": "widowx-250", "camera": "wrist"}
    found = published_topics("arm", section, *configure("arm", section))
    assert found == ("robot/state", "wrist/color")


LIMITS = {"low": [-1.0] * 7, "high": [1.0] * 7}


@pytest.mark.parametrize(
    ("process", "settings"),
    [
        ("camera", {"kind": "synthetic", "name": "a", "width": 8, "height": 8}),
        ("faulty-camera", {"name": "a", "side": 16}),
        ("sim-camera", {"name": "a"}),
        ("sim-arm", {}),
        ("sim-robot", {}),
        ("faulty-policy", {"stand_in_ms": 1.0}),
        ("control", {"limits": LIMITS}),
    ],
)
def test_processes_publish_what_the_table_says(
    process: str, settings: dict[str, object], tmp_path: Path
) -> None:
    """Seen by the locks that their publishers take."""
    section = {"process": process, **settings}
    module, config = configure("one", section)
    expected = {
        socket_path(tmp_path, topic(name)).name
        for name in published_topics("one", section, module, config)
    }
    stop = threading.Event()
    thread = threading.Thread(target=module.run, args=(config, tmp_path, stop))
    thread.start()
    found: set[str] = set()
    try:
        end = time.monotonic() + PATIENCE_S
        while thread.is_alive() and not expected <= found and time.monotonic() < end:
            time.sleep(0.02)
            paths = [path.name.removesuffix(".lock") for path in tmp_path.glob("*.lock")]
            found = {name for name in paths if not name.endswith("report")}
    finally:
        stop.set()
        thread.join()
    assert expected and found == expected
