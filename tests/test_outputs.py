"""Places that cannot be written and ports that are none are refused before a verb does anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trimvla.launch.outputs import Output, check_outputs, unwritable
from trimvla.runtime.backends.tensorrt import engine_folders
from trimvla.runtime.bus.network import Network, RemoteTopic
from trimvla.runtime.cameras.lerobot import LeRobotSource
from trimvla.runtime.errors import CameraError, ConfigError
from trimvla.runtime.ports import check_endpoint
from trimvla.runtime.record.metrics import MetricsConfig

NOWHERE = "/proc/nowhere/out"  # whoever asks, root included
RUN = ("run", "robot", "--task", "pick up the red cube")
WRITING = [
    ("demo", "--video", f"{NOWHERE}.mp4"),
    ("demo", "--record", f"{NOWHERE}.mcap"),
    (*RUN, "--record", f"{NOWHERE}.mcap"),
    (*RUN, "--run-dir", NOWHERE),
    ("record", f"{NOWHERE}.mcap", "--run-dir", "."),
    ("load", "--record", f"{NOWHERE}.mcap"),
    ("eval", "--out", NOWHERE),
    ("train", "--run", NOWHERE),
    ("trim", "tabletop", "--out", f"{NOWHERE}.json"),
    ("export", "tabletop", "--out", NOWHERE),
    ("build", "tabletop", "--out", NOWHERE),
    ("bench", "--samples", f"{NOWHERE}.npz"),
    ("ablate", "--out", NOWHERE),
    ("ablate", "--work", NOWHERE),
    ("ablate", "--page", NOWHERE),
    ("inspect", "tabletop", "--image", "x.png", "--instruction", "go", "--out", f"{NOWHERE}.png"),
    ("inspect", "tabletop", "--image", "x.png", "--instruction", "go", "--rerun", f"{NOWHERE}.rrd"),
    ("keys", "new", "host", "--dir", NOWHERE),
    ("gpu-bench", "--device", "cpu", "--out", NOWHERE),
    ("report", "--page", NOWHERE),
]


def cli(
    *words: str, cwd: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trimvla.launch.cli", *words, "--json"]
    environ = {**os.environ, **(environ or {})}
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one error of a verb that did nothing."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is False
    return done.stderr


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_a_place_that_cannot_be_written_is_refused_first(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    error = refused(cli(*words, cwd=tmp_path))
    assert error.startswith("error: expected a place that can be written for ")
    assert NOWHERE in error
    assert list(tmp_path.iterdir()) == []


def test_demo_in_a_folder_that_cannot_be_written() -> None:
    assert "--video, got out/demo.mp4" in refused(cli("demo", cwd=Path("/proc")))


@pytest.mark.parametrize(
    "words",
    [("demo", "--video", "film.avi"), ("inspect", "x", "--out", "image.xyz")],
    ids=" ".join,
)
def test_a_suffix_that_nothing_writes_is_refused_first(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    assert "suffix" in refused(cli(*words, cwd=tmp_path))


def test_where_a_file_can_be_written(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new" / "deep" / "file") == ""
    assert unwritable(tmp_path / "new", folder=True) == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("kept")
    assert unwritable(tmp_path / "file") == ""
    assert (tmp_path / "file").read_text() == "kept"


def test_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/proc/nowhere/file")
    assert unwritable(tmp_path) == "it is a folder"
    assert unwritable(tmp_path / "file", folder=True) == "it is not a folder"
    assert "is not a folder" in unwritable(tmp_path / "file" / "inside")
    assert unwritable(tmp_path / "pipe") == "it is no regular file"
    assert unwritable(tmp_path / "link") != ""
    assert "too long" in unwritable(tmp_path / ("x" * 300))
    assert unwritable(tmp_path / "\udcff") == "its name is not UTF-8"


def test_all_problems_at_once_and_one_file_for_two_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--a, got /proc/nowhere/a.*--b, got /proc/nowhere/b"):
        check_outputs(
            [Output("--a", Path("/proc/nowhere/a")), Output("--b", Path("/proc/nowhere/b"))]
        )
    with pytest.raises(ConfigError, match="expected another file for --b than for --a"):
        check_outputs(
            [
                Output("--a", tmp_path / "x"),
                Output("--b", tmp_path / "." / "x"),
                Output("--c", None),
            ]
        )


@pytest.mark.parametrize("port", ["70000", "-1", "65536"])
@pytest.mark.parametrize(
    "words",
    [("serve", "--zmq"), ("serve", "--websocket"), ("serve", "--vla-eval"), (*RUN, "--metrics")],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_port_out_of_range_is_refused_first(
    words: tuple[str, ...], port: str, tmp_path: Path
) -> None:
    assert f"expected a port from 0 to 65535 for {words[-1]}, got {port}" in refused(
        cli(*words, port, cwd=tmp_path)
    )


@pytest.mark.parametrize("port", ["70000", "-1", "0", "", "http"])
def test_a_network_files_ports_are_refused_first(port: str, tmp_path: Path) -> None:
    (tmp_path / "network.toml").write_text(
        f'[topics."front/color"]\nendpoint = "tcp://127.0.0.1:{port}"\n'
    )
    error = refused(cli(*RUN, "--network", "network.toml", "--seconds", "1", cwd=tmp_path))
    assert "topics.front/color.endpoint" in error
    with pytest.raises(ConfigError):
        Network(topics={"front/color": RemoteTopic(f"tcp://127.0.0.1:{port}")}).check()
    with pytest.raises(CameraError):
        LeRobotSource(f"tcp://127.0.0.1:{port}/front", "front", 0.1)


def test_ports_that_are_none_in_components() -> None:
    for port in (-1, 65536, 70000):
        with pytest.raises(ConfigError, match="port"):
            MetricsConfig(port=port)
        with pytest.raises(ConfigError, match="port"):
            check_endpoint(f"tcp://127.0.0.1:{port}", "x", any_free=True)
    check_endpoint("tcp://127.0.0.1:*", "x", any_free=True)
    check_endpoint("tcp://[::1]:5555", "x")
    check_endpoint("ipc:///tmp/x", "x")


def homeless(*words: str, cwd: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """The program for a number that no passwd file knows, without HOME, as in many containers."""
    bare = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    become = ["unshare", "--user", "--map-user=54321"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*become, "true"], check=False).returncode != 0
    ):
        pytest.skip("no user namespaces here")
    command = [*become, sys.executable, "-m", "trimvla.launch.cli", *words, "--json"]
    return subprocess.run(
        command, cwd=cwd, env=bare | given, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ("build", "tabletop"),
        ("serve", "tabletop", "--backend", "tensorrt", "--seconds", "1"),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_a_user_without_a_home_gets_an_answer(words: tuple[str, ...], tmp_path: Path) -> None:
    """TensorRT, or its engines, may be missing here; a traceback must not come."""
    done = homeless(*words, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "ok" in json.loads(done.stdout.splitlines()[-1])


def test_a_user_without_a_home_serves_with_onnx_runtime(tmp_path: Path) -> None:
    words = ("serve", "tabletop", "--zmq", "0", "--websocket", "None", "--seconds", "0.1")
    done = homeless(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_paths_with_a_tilde_of_nobody() -> None:
    with pytest.raises(ConfigError, match="'engines'"):
        engine_folders.named("~no-such-user-anywhere/x")
