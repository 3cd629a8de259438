"""Whoever is killed, nothing stays for ever: the last process removes sockets and directories, or
the next start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_supervisor import alive, parent_of, pids, wait_until
from trimvla.launch.system.run_dirs import OWNER, membership, remove_abandoned, temporary_run_dir
from trimvla.runtime.errors import ConfigError

SYSTEM = '[camera-a]\nprocess = "camera"\nname = "a"\nkind = "synthetic"\nwidth = 32\nheight = 24\n'


@contextmanager
def running(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen, Path, int]]:
    """`trimvla run` with one camera: its process, its run directory and its child."""
    (home / "system.toml").write_text(SYSTEM)
    program = [sys.executable, "-m", "trimvla.launch.cli", "run", str(home / "system.toml"), *words]
    sink = subprocess.DEVNULL
    with subprocess.Popen(
        program, env={**os.environ, "TMPDIR": str(home)}, stdout=sink, stderr=sink
    ) as process:
        try:
            assert wait_until(lambda: bool(list(home.glob("*/a-color"))), 60)
            [socket] = home.glob("*/a-color")
            [child] = [pid for pid in pids() if parent_of(pid) == process.pid]
            yield process, socket.parent, child
        finally:
            process.kill()


def test_the_last_process_removes_what_a_killed_supervisor_leaves(tmp_path: Path) -> None:
    with running(tmp_path) as (process, run_dir, child):
        assert (run_dir / "health").is_socket()
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(child), 30)
        assert wait_until(lambda: not run_dir.exists(), 30)


def test_a_directory_with_a_name_stays_without_sockets(tmp_path: Path) -> None:
    named = tmp_path / "named"
    with running(tmp_path, "--run-dir", str(named)) as (process, run_dir, child):
        assert run_dir == named
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(child), 30)
        assert wait_until(lambda: not any(path.is_socket() for path in named.iterdir()), 30)
        assert (named / "camera-a.log").is_file()


def test_the_next_start_removes_what_nobody_could(tmp_path: Path) -> None:
    """All processes are killed at once, as by a machine that has no memory left."""
    with running(tmp_path) as (process, run_dir, child):
        os.kill(child, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        process.wait()
        assert wait_until(lambda: not alive(child), 30)
        assert (run_dir / "a-color").is_socket()
    program = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "camera",
        "--kind",
        "synthetic",
        "--seconds",
        "0.2",
    ]
    done = subprocess.run(
        program, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not run_dir.exists()


def test_what_somebody_holds_or_nobody_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = tmp_path / "trimvla-notes"
    foreign.mkdir()
    (foreign / "a.txt").write_text("mine")
    orphan = tmp_path / "trimvla-orphan"
    led = tmp_path / "trimvla-led"
    for path in (orphan, led):
        path.mkdir()
        (path / OWNER).touch()
    (tmp_path / "trimvla-link").symlink_to(foreign)
    with membership(led), temporary_run_dir() as held:
        assert not orphan.exists()
        orphan.mkdir()
        remove_abandoned()
        assert held.is_dir() and led.is_dir() and orphan.is_dir() and (foreign / "a.txt").is_file()
    assert not held.exists()
    assert not led.exists(), "nobody owned it, and its last process has left"


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "members").symlink_to(precious)
    with pytest.raises(ConfigError, match="got a link for"), membership(tmp_path):
        pass
    assert precious.read_text() == "mine"
