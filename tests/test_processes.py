"""The process table: shipped configurations are valid, overrides work, every mistake is reported at
once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.test_supervisor import checked
from tests.tiny_bundle import write_bundle
from trimvla.launch import cli
from trimvla.launch.options import collect_overrides
from trimvla.launch.system.config import decode_file
from trimvla.launch.system.service import shortfalls
from trimvla.launch.system.setup.observers import with_metrics, with_recorder
from trimvla.launch.system.setup.process_table import PROCESSES
from trimvla.launch.system.setup.programs import commands, programs
from trimvla.launch.system.setup.sections import (
    CONFIGS,
    configure,
    override,
    read_system,
    reports_of,
)
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bus.messages import Health, Report
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.errors import ConfigError


@pytest.mark.parametrize("process", list(PROCESSES.values()), ids=lambda process: process.name)
def test_every_row_can_run(process) -> None:
    module = process.load()
    assert isinstance(getattr(module, process.config), type)
    assert process.is_driver or callable(module.run)  # what runs a driver is of its class


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    sections = read_system(path.stem)
    assert sections == decode_file(path)
    for name, section in sections.items():
        configure(name, section)


def test_overrides_take_the_type_of_toml() -> None:
    sections = read_system(
        "demo", ["control.hz=4.5", "policy.bundle=my/bundle", "control.queue.votes=1"]
    )
    assert sections["control"]["hz"] == 4.5
    assert sections["policy"]["bundle"] == "my/bundle"
    assert sections["control"]["queue"] == {"mode": "ensemble", "votes": 1}


def test_every_mistake_in_every_section_is_reported() -> None:
    wrong = [
        "control.hz=fast",
        "policy.bundel=x",
        "robot.state_hz=0.0",
        "nobody.x=1",
        "control.hz.x=1",
    ]
    with pytest.raises(ConfigError) as caught:
        read_system("demo", wrong)
    for expected in (
        "control: hz: expected",
        "policy: bundel: unknown",
        "robot: ",
        "nobody.x: ",
        "control.hz.x: ",
    ):
        assert expected in str(caught.value)


def test_an_unknown_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[arm]\nspeed = 1\n[gripper]\nprocess = "hand"\n')
    with pytest.raises(
        ConfigError, match=r"arm: expected 'process' as one of camera.*; gripper: .*'hand'"
    ):
        read_system(path)


def test_override_needs_a_section() -> None:
    assert "expected" in override({"policy": {}}, "hz=3")


def test_limits_survive_the_way_to_the_processes(tmp_path: Path) -> None:
    sections = read_system("demo")
    argv = commands(sections, tmp_path)["control"]
    written = decode_file(Path(argv[argv.index("--system") + 1]))
    assert written == sections
    assert written["control"]["limits"]["max_change"][0] == float("inf")


def test_dotted_options_become_overrides() -> None:
    words = ["robot", "--policy.threads", "2", "--seconds", "1.5", "--control.hz=4"]
    expected = ["robot", "--set", "policy.threads=2", "--seconds", "1.5", "--set", "control.hz=4"]
    assert collect_overrides(words) == expected


def test_a_process_that_is_not_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "process",
        "arm",
        "--system",
        str(CONFIGS / "demo.toml"),
        "--run-dir",
        str(tmp_path),
    ]
    assert cli.main(arguments) == 1
    assert (
        "expected one of the processes robot, camera-front, policy, control, got 'arm'"
        in capsys.readouterr().err
    )


def test_run_publishes_until_its_time_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cameras.toml"
    path.write_text(
        '[camera-a]\nprocess = "camera"\nname = "a"\nkind = "synthetic"\nwidth = 32\nheight = 24\n'
    )
    assert cli.main(["run", str(path), "--seconds", "8", "--camera-a.hz", "30.0", "--json"]) == 0
    assert '"frames_published": ' in capsys.readouterr().out


def test_a_camera_that_does_not_start_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cameras.toml"
    path.write_text(
        '[camera-a]\nprocess = "camera"\nname = "a"\nkind = "image"\nwhere = "none.png"\n'
    )
    assert cli.main(["run", str(path), "--seconds", "20", "--json"]) == 1
    assert (
        "process 'camera-a' ended with status 1: error: camera 'a': cannot read"
        in capsys.readouterr().err
    )


def test_the_camera_verb(capsys: pytest.CaptureFixture[str]) -> None:
    picture = ["--kind", "synthetic", "--width", "32", "--height", "24"]
    assert cli.main(["camera", *picture, "--seconds", "0.5", "--json"]) == 0
    assert '"frames_published": ' in capsys.readouterr().out


def test_watchers_are_added_to_a_system(tmp_path: Path) -> None:
    plain = read_system("demo")
    watched = with_recorder(with_metrics(plain, 0), tmp_path / "a.mcap")
    assert list(watched) == ["recorder", "metrics", *plain]
    assert watched["metrics"]["processes"] == list(plain)
    assert watched["recorder"]["cameras"] == ["front"]
    assert watched["recorder"]["processes"] == list(plain)
    assert watched["recorder"]["system"]["policy"] == plain["policy"]
    for name, section in watched.items():
        configure(name, section)
    with pytest.raises(ConfigError, match="without a section 'recorder'"):
        with_recorder(watched, tmp_path / "b.mcap")


OWN_NAMES = """
[eye]
process = "camera"
kind = "synthetic"
width = 32
height = 24
[brain]
process = "policy"
bundle = "{bundle}"
[hand]
process = "control"
limits.low = [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.0]
limits.high = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
[page]
process = "metrics"
port = 0
"""


def test_a_section_may_have_any_name(tmp_path: Path) -> None:
    """All of them become ready, whatever they are called; who watches them knows them by what they
    are.
    """
    path = tmp_path / "own.toml"
    path.write_text(OWN_NAMES.format(bundle=write_bundle(tmp_path / "tiny")))
    sections = read_system(path)
    assert list(reports_of(sections).values()) == ["camera-front", "policy", "control", "metrics"]
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    with Supervisor(programs(sections, run_dir), run_dir) as group:
        assert checked(
            group, lambda: len(group.posts) == 4 and all(post.ready for post in group.posts), 120
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[a]\nprocess = "policy"\n[b]\nprocess = "policy"\n',
            "b: expected one process 'policy' in a system, 'a'",
        ),
        (
            '[a]\nprocess = "camera"\n[b]\nprocess = "sim-camera"\n',
            "b: expected one process 'camera-front'",
        ),
        ('["../a"]\nprocess = "policy"\n', r"got '\.\./a' for a section's name"),
    ],
)
def test_names_that_cannot_be(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_system(path)


SYSTEM = """
[eye]
process = "camera"
kind = "synthetic"
width = 32
height = 24
[policy]
bundle = "{bundle}"
ready_timeout_s = {timeout_s}
[control]
limits.low = [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.0]
limits.high = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
"""


def run_system(text: str, run_dir: Path, *words: str) -> tuple[int, dict, str]:
    """Status, answer and log of `trimvla run`, with its health heard all the time."""
    (run_dir / "system.toml").write_text(text)
    program = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "run",
        str(run_dir / "system.toml"),
        "--json",
    ]
    done = subprocess.run(
        [*program, "--run-dir", str(run_dir), *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_bundle_that_hangs_ends_the_run(tmp_path: Path) -> None:
    """Its graph loops for ever.

    One error, status 1, and the robot is told to hold for that reason.
    """
    bundle = write_bundle(tmp_path / "loops", loops=True)
    told: list[Health] = []
    with Subscriber(tmp_path, [topic("health")]) as hears:
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                hears.update(0.1)
                told.extend(
                    message for message in hears["health"].fresh if isinstance(message, Health)
                )

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            text = SYSTEM.format(bundle=bundle, timeout_s=2.0)
            status, answer, log = run_system(
                text, tmp_path, "--task", "stack the red cube", "--seconds", "200"
            )
        finally:
            over.set()
            listener.join()
    words = f"expected to be ready within 2 s, still warming up {bundle}"
    assert status == 1
    assert words in answer["error"]
    assert [words in line for line in log.splitlines() if line.startswith("error: ")] == [True], (
        "one error"
    )
    assert told and not any(message.ok for message in told)
    assert words in told[-1].reason


def test_a_robot_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    """No driver publishes where the robot is, so control sends no action: the run did not do what
    it was asked.
    """
    text = SYSTEM.format(bundle=write_bundle(tmp_path / "tiny"), timeout_s=120.0)
    status, answer, log = run_system(
        text, tmp_path, "--task", "stack the red cube", "--seconds", "12"
    )
    assert status == 1
    assert not answer["ok"]
    assert f"error: {answer['error']}" in log
    assert answer["processes"]["control"]["counters"].get("actions", 0) == 0


def report_of(process: str, state: str, reason: str = "", **counters: int) -> Report:
    return Report(time_ns=0, process=process, state=state, reason=reason, counters=counters)


@pytest.mark.parametrize(
    ("reports", "gone", "unwell", "task", "found"),
    [
        ([report_of("control", "running", actions=3)], [], "", True, []),
        ([report_of("camera-front", "streaming")], [], "", True, []),
        ([report_of("control", "idle", "no task")], [], "", False, []),
        (
            [report_of("control", "armed", "no robot state")],
            [],
            "",
            True,
            ["expected actions for the task, control sent none; it is 'armed': no robot state"],
        ),
        (
            [report_of("control", "fault", "pressed", actions=3)],
            [],
            "",
            True,
            ["process 'control': pressed"],
        ),
        (
            [report_of("recorder", "failed", "disk full")],
            [],
            "",
            False,
            ["process 'recorder': disk full"],
        ),
        (
            [],
            ["process 'recorder' ended"],
            "process 'policy' is starting",
            False,
            ["policy", "recorder"],
        ),
    ],
)
def test_what_a_run_lacks(reports, gone, unwell, task, found) -> None:
    lacks = shortfalls(reports, gone, unwell, task=task)
    assert len(lacks) == len(found)
    assert all(words in text for words, text in zip(found, lacks, strict=True))


def test_a_recorder_that_cannot_write_is_no_success(tmp_path: Path) -> None:
    camera = '[eye]\nprocess = "camera"\nkind = "synthetic"\nwidth = 32\nheight = 24\n'
    (tmp_path / "file").write_text("no folder")
    text = f'{camera}[recorder]\npath = "{tmp_path}/file/a.mcap"\n'
    status, answer, log = run_system(text, tmp_path, "--seconds", "6")
    assert status == 1
    assert "process 'recorder' ended with status 1: error: recording" in answer["error"]
    assert f"error: {answer['error']}" in log


def test_a_recording_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"expected no file at .*a\.mcap"):
        with_recorder(read_system("demo"), tmp_path / "a.mcap")
