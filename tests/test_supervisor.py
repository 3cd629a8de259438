"""Processes start, are missed when they end, and leave no orphan, however the parent goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimvla.launch import children
from trimvla.launch.supervisor import ProcessEndedError, Supervisor

OBEDIENT = "from trimvla.launch.supervisor import stop_event; print('up', flush=True); stop_event(True).wait()"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
BROKEN = "import sys; print('loading'); sys.exit('error: bundle is not there')"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_children_run_and_stop_when_asked(tmp_path: Path) -> None:
    with Supervisor({"a": python(OBEDIENT), "b": python(OBEDIENT)}, tmp_path) as group:
        assert wait_until(lambda: all("up" in child.log.read_text() for child in group.children))
        group.check()
    assert [child.status() for child in group.children] == [0, 0]


def test_a_child_that_ended_is_reported_with_its_error(tmp_path: Path) -> None:
    with Supervisor({"policy": python(BROKEN)}, tmp_path) as group:
        assert wait_until(lambda: group.children[0].status() is not None)
        with pytest.raises(ProcessEndedError, match="'policy' ended with status 1: error: bundle is not there"):
            group.check()


def test_a_dispensable_child_may_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Supervisor({"recorder": python(BROKEN), "control": python(OBEDIENT)}, tmp_path, ["recorder"]) as group:
        assert wait_until(lambda: group.children[0].status() is not None)
        for _ in range(3):
            group.check()
        assert [child.name for child in group.children] == ["control"]
    assert [record.message for record in caplog.records] == [
        "process 'recorder' ended with status 1: error: bundle is not there; the others go on"
    ]


def test_a_stubborn_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.2)
    monkeypatch.setattr(supervisor, "GRACE_S", 0.2)
    with Supervisor({"stubborn": python(STUBBORN)}, tmp_path) as group:
        assert wait_until(lambda: "up" in group.children[0].log.read_text())
    assert group.children[0].status() == -signal.SIGKILL


def test_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = (
        "import sys, time; from pathlib import Path; from trimvla.launch.supervisor import Supervisor\n"
        f"with Supervisor({{'child': [sys.executable, '-c', {OBEDIENT!r}]}}, Path({str(tmp_path)!r})) as group:\n"
        "    print(group.children[0].pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(python(parent), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert wait_until(lambda: "up" in (tmp_path / "child.log").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert wait_until(lambda: not alive(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_process_cleanly(number: signal.Signals) -> None:
    code = OBEDIENT.replace("stop_event(True)", "stop_event(False)")
    process = subprocess.Popen(python(code.replace("print('up', flush=True); ", "")), stdin=subprocess.DEVNULL)
    assert wait_until(lambda: _handles(process.pid, number))
    process.send_signal(number)
    assert process.wait(timeout=10) == 0


def _handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal (Python's default counts for SIGINT only)."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    caught = int(rows["SigCgt"], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and bool(caught >> (number - 1) & 1)
