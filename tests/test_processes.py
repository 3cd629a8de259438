"""The process table: shipped configurations are valid, overrides work, every mistake is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimvla.launch import cli
from trimvla.launch.config import decode_file
from trimvla.launch.options import collect_overrides
from trimvla.launch.processes import CONFIGS, PROCESSES, commands, configure, override, read_system
from trimvla.launch.watching import with_metrics, with_recorder
from trimvla.runtime.errors import ConfigError


@pytest.mark.parametrize("process", list(PROCESSES.values()), ids=lambda process: process.name)
def test_every_row_can_run(process) -> None:
    module = process.load()
    assert callable(module.run)
    assert isinstance(getattr(module, process.config), type)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    sections = read_system(path.stem)
    assert sections == decode_file(path)
    for name, section in sections.items():
        configure(name, section)


def test_overrides_take_the_type_of_toml() -> None:
    sections = read_system("demo", ["control.hz=4.5", "policy.bundle=my/bundle", "control.queue.votes=1"])
    assert sections["control"]["hz"] == 4.5
    assert sections["policy"]["bundle"] == "my/bundle"
    assert sections["control"]["queue"] == {"mode": "ensemble", "votes": 1}


def test_every_mistake_in_every_section_is_reported() -> None:
    wrong = ["control.hz=fast", "policy.bundel=x", "robot.state_hz=0.0", "nobody.x=1", "control.hz.x=1"]
    with pytest.raises(ConfigError) as caught:
        read_system("demo", wrong)
    for expected in ("control: hz: expected", "policy: bundel: unknown", "robot: ", "nobody.x: ", "control.hz.x: "):
        assert expected in str(caught.value)


def test_an_unknown_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[arm]\nspeed = 1\n[gripper]\nprocess = "hand"\n')
    with pytest.raises(ConfigError, match=r"arm: expected 'process' as one of camera.*; gripper: .*'hand'"):
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


def test_a_process_that_is_not_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["process", "arm", "--system", str(CONFIGS / "demo.toml"), "--run-dir", str(tmp_path)]
    assert cli.main(arguments) == 1
    assert "expected one of the processes robot, camera-front, policy, control, got 'arm'" in capsys.readouterr().err


def test_run_publishes_until_its_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cameras.toml"
    path.write_text('[camera-a]\nprocess = "camera"\nname = "a"\nkind = "synthetic"\nwidth = 32\nheight = 24\n')
    assert cli.main(["run", str(path), "--seconds", "2.5", "--camera-a.hz", "30.0", "--json"]) == 0
    assert '"frames_published": ' in capsys.readouterr().out


def test_a_camera_that_does_not_start_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cameras.toml"
    path.write_text('[camera-a]\nprocess = "camera"\nname = "a"\nkind = "image"\nwhere = "none.png"\n')
    assert cli.main(["run", str(path), "--seconds", "20", "--json"]) == 1
    assert "process 'camera-a' ended with status 1: error: camera 'a': cannot read" in capsys.readouterr().err


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


def test_a_recording_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"expected no file at .*a\.mcap"):
        with_recorder(read_system("demo"), tmp_path / "a.mcap")
