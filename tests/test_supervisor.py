"""Processes start in order, are missed when they end or hang, and come back; no orphan, however the
parent goes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from trimvla.launch.system import child as children
from trimvla.launch.system import log_files
from trimvla.launch.system.child import Program
from trimvla.launch.system.supervisor import ProcessEndedError, Supervisor
from trimvla.runtime.bus.messages import Health, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import ConfigError

OBEDIENT = (
    "from trimvla.launch.system.signals import stop_event; print('up', flush=True);"
    " stop_event(True).wait()"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    " time.sleep(60)"
)
BROKEN = "import sys; print('loading'); sys.exit('error: bundle is not there')"
REPORTING = """
import sys; from pathlib import Path; from trimvla.launch.system.signals import stop_event
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
stop, name = stop_event(True), {name!r}
reporter = Reporter(Path({run_dir!r}), Telemetry(name))
with Path({run_dir!r}, 'events').open('a') as events: print('start', name, file=events)
while not stop.wait(0.05):
    reporter.telemetry.state = 'up'
    reporter.beat()
with Path({run_dir!r}, 'events').open('a') as events: print('stop', name, file=events)
reporter.close()
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def plain(**codes: str) -> list[Program]:
    return [Program(name, python(code)) for name, code in codes.items()]


def reporting(run_dir: Path, name: str, **options) -> Program:
    code = REPORTING.format(name=name, run_dir=str(run_dir))
    return Program(name, python(code), report=name, restart=True, **options)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def checked(group: Supervisor, condition, timeout_s: float = 20.0) -> bool:
    """Whether it becomes true while the group is looked after."""
    return wait_until(lambda: group.check() or condition(), timeout_s)


def running(group: Supervisor) -> Sequence[str]:
    return [post.program.name for post in group.posts if post.child and post.ready]


def test_children_run_and_stop_when_asked(tmp_path: Path) -> None:
    with Supervisor(plain(a=OBEDIENT, b=OBEDIENT), tmp_path) as group:
        assert wait_until(lambda: all("up" in child.log.read_text() for child in group.children))
        group.check()
    assert [child.status() for child in group.children] == [0, 0]


def test_a_child_that_ended_is_reported_with_its_error(tmp_path: Path) -> None:
    with Supervisor(plain(policy=BROKEN), tmp_path) as group:
        assert wait_until(lambda: group.children[0].status() is not None)
        with pytest.raises(
            ProcessEndedError, match="'policy' ended with status 1: error: bundle is not there"
        ):
            group.check()


def test_a_dispensable_child_may_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    programs = [
        Program("recorder", python(BROKEN), matters=False),
        Program("control", python(OBEDIENT)),
    ]
    with Supervisor(programs, tmp_path) as group:
        assert wait_until(lambda: group.children[0].status() is not None)
        for _ in range(3):
            group.check()
        assert [child.name for child in group.children] == ["control"]
    assert [record.message for record in caplog.records] == [
        "process 'recorder' ended with status 1: error: bundle is not there; the others go on"
    ]


def test_a_stubborn_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.2)
    stubborn = Program("stubborn", python(STUBBORN), stop_s=0.2)
    with Supervisor([stubborn], tmp_path) as group:
        assert wait_until(lambda: "up" in group.children[0].log.read_text())
    assert group.children[0].status() == -signal.SIGKILL


def test_order_loss_return_and_silence(tmp_path: Path) -> None:
    """One life of a group: control starts last; what is lost is told, comes back, and control stops
    first.
    """
    programs = [
        reporting(tmp_path, "control", order=2, silent_s=60.0),
        reporting(tmp_path, "policy", silent_s=1.5),
    ]
    with Subscriber(tmp_path, [topic("health")]) as hears, Supervisor(programs, tmp_path) as group:
        policy = group.posts[0]
        assert [post.program.name for post in group.posts] == ["policy"]
        assert checked(group, lambda: running(group) == ["policy", "control"])
        for number, words in (
            (signal.SIGKILL, "ended with status -9"),
            (signal.SIGSTOP, "has not reported for"),
        ):
            assert policy.child is not None
            os.kill(policy.child.pid, number)
            assert checked(group, lambda: group.unwell != "")
            assert words in group.unwell
            assert wait_until(lambda: hears.update(0.1) or _says(hears, ok=False)), (
                "the robot is told to hold"
            )
            assert checked(group, lambda: running(group) == ["policy", "control"])
            assert wait_until(
                lambda: (group.check(), hears.update(0.1)) and _says(hears, ok=True)
            ), "and to go on"
    events = (tmp_path / "events").read_text().split("\n")[:-1]
    assert events == [
        "start policy",
        "start control",
        "start policy",
        "start policy",
        "stop control",
        "stop policy",
    ]
    assert not [path for path in tmp_path.iterdir() if path.is_socket()], (
        "no socket is left of those that were killed"
    )


def _says(hears: Subscriber, ok: bool) -> bool:
    message = hears["health"].message
    return isinstance(message, Health) and message.ok is ok


def test_a_process_that_always_fails_ends_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "PAUSES_S", (0.0,))
    lives = 0
    with Supervisor([reporting(tmp_path, "policy")], tmp_path) as group:
        with pytest.raises(ProcessEndedError, match="'policy' ended with status -9"):
            while lives < 3:
                assert checked(group, lambda: running(group) == ["policy"])
                lives += 1
                child = group.children[0]
                os.kill(child.pid, signal.SIGKILL)
                assert wait_until(lambda child=child: child.status() is not None)
                group.check()
        assert lives == 2


HANGING = "import time; print('loading', flush=True); time.sleep(600)"
STARTING = """
import sys, time; from pathlib import Path
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
reporter = Reporter(Path({run_dir!r}), Telemetry('policy'))
reporter.telemetry.reason = 'warming up tiny'
while True:
    reporter.beat()
    time.sleep(0.05)
"""
FALLS_SILENT = """
import sys, time; from pathlib import Path
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
reporter = Reporter(Path({run_dir!r}), Telemetry('policy'))
reporter.telemetry.state = 'idle'
for _ in range(20):
    reporter.beat()
    time.sleep(0.05)
while True:
    pass
"""


@pytest.mark.parametrize(("code", "doing"), [(HANGING, ""), (STARTING, ": warming up tiny")])
def test_a_process_that_is_never_ready_ends_the_group(
    code: str, doing: str, tmp_path: Path
) -> None:
    """Until then the robot is told to hold, and why."""
    start_s = 10.0 if doing else 4.0
    code = code.format(run_dir=str(tmp_path))
    program = Program("policy", python(code), report="policy", restart=True, start_s=start_s)
    late = Program("control", python(OBEDIENT), order=2)
    with (
        Subscriber(tmp_path, [topic("health")]) as hears,
        Supervisor([program, late], tmp_path) as group,
    ):
        assert checked(group, lambda: hears.update(0.05) or _says(hears, ok=False)), (
            "not ready is not well"
        )
        assert group.unwell == "process 'policy' is starting"
        words = f"process 'policy' was not ready within {start_s:g} s{doing}, and was killed"
        with pytest.raises(ProcessEndedError, match=words):
            checked(group, lambda: False)
        assert wait_until(
            lambda: hears.update(0.05) or words.split(",", maxsplit=1)[0] in _reason(hears)
        )
        assert [post.program.name for post in group.posts] == ["policy"], (
            "control was not started without it"
        )


def test_a_recorder_that_hangs_at_its_start_stops_nobody_else(tmp_path: Path) -> None:
    stuck = Program("recorder", python(HANGING), report="recorder", matters=False, start_s=1.0)
    with Supervisor([stuck, Program("control", python(OBEDIENT), order=1)], tmp_path) as group:
        assert not group.unwell.startswith("process 'recorder'")
        assert checked(group, lambda: [child.name for child in group.children] == ["control"])
        assert group.unwell == ""
        [gone] = group.gone
        assert gone.startswith(
            "process 'recorder' was not ready within 1 s, and was killed: loading"
        )


def test_a_process_that_spins_in_silence_is_lost_for_that_reason(tmp_path: Path) -> None:
    code = FALLS_SILENT.format(run_dir=str(tmp_path))
    program = Program("policy", python(code), report="policy", restart=True, silent_s=0.5)
    with Supervisor([program], tmp_path) as group:
        assert checked(group, lambda: running(group) == ["policy"])
        assert checked(
            group, lambda: group.unwell.startswith("process 'policy' has not reported for ")
        )
        assert checked(group, lambda: running(group) == ["policy"]), "and comes back"


def _reason(hears: Subscriber) -> str:
    message = hears["health"].message
    return message.reason if isinstance(message, Health) else ""


def test_a_run_directory_has_one_system(tmp_path: Path) -> None:
    with (
        Supervisor([], tmp_path),
        pytest.raises(ConfigError, match="another one runs in"),
        Supervisor([], tmp_path),
    ):
        pass
    with Supervisor([], tmp_path):
        pass


def test_only_dead_sockets_are_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
        dead.listen()
    with Publisher(tmp_path, topic("robot/state")), Supervisor([], tmp_path) as group:
        group.stop()
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_socket()) == [
            "robot-state"
        ]


def test_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = (
        "import sys, time; from pathlib import Path; from trimvla.launch.system.child import"
        " Program\nfrom trimvla.launch.system.supervisor import Supervisor\nchild ="
        f" Program('child', [sys.executable, '-c', {OBEDIENT!r}])\nwith Supervisor([child],"
        f" Path({str(tmp_path)!r})) as group:\n    print(group.children[0].pid, flush=True);"
        " time.sleep(60)"
    )
    process = subprocess.Popen(python(parent), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert wait_until(lambda: "up" in (tmp_path / "child.log").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert wait_until(lambda: not alive(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_process_cleanly(number: signal.Signals) -> None:
    code = OBEDIENT.replace("stop_event(True)", "stop_event(False)")
    process = subprocess.Popen(
        python(code.replace("print('up', flush=True); ", "")), stdin=subprocess.DEVNULL
    )
    assert wait_until(lambda: _handles(process.pid, number))
    process.send_signal(number)
    assert process.wait(timeout=10) == 0


TALKATIVE = """
import time; from trimvla.launch.system.signals import stop_event
stop = stop_event(True)
for number in range(3000):
    print(f"{number:05d}", "x" * 1000)
    if number % 50 == 0: time.sleep(0.01)
while not stop.wait(0.05): print("the end", flush=True)
"""


def test_a_log_does_not_grow_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 MB of lines leave two files of a tenth of a megabyte, the newest lines among them."""
    monkeypatch.setattr("trimvla.launch.system.supervisor.TRIM_PERIOD_S", 0.02)
    monkeypatch.setattr(log_files, "LIMIT_BYTES", 100_000)
    log = tmp_path / "talkative.log"
    with Supervisor(plain(talkative=TALKATIVE), tmp_path) as group:
        assert checked(group, lambda: "the end" in group.children[0].last_words())
        time.sleep(0.03)
        group.check()
        assert log.stat().st_size <= 100_000
        assert 0 < log_files.older(log).stat().st_size <= 100_000
        assert group.children[0].last_words().endswith("the end")


ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "trimvla.launch.cli", *sys.argv[1:]])
"""


def test_a_closed_terminal_stops_everything(tmp_path: Path) -> None:
    """As when an ssh session ends: a real terminal, whose other side goes away."""
    system = tmp_path / "cameras.toml"
    system.write_text(
        '[camera-a]\nprocess = "camera"\nname = "a"\nkind = "synthetic"\nwidth = 32\nheight = 24\n'
    )
    here, there = os.openpty()
    process = subprocess.Popen(
        [*python(ON_A_TERMINAL), "run", str(system)],
        stdin=there,
        stdout=there,
        stderr=there,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    os.close(there)
    try:
        assert wait_until(lambda: list(tmp_path.glob("trimvla-*/a-color")) != [], 60)
        [child] = [pid for pid in pids() if parent_of(pid) == process.pid]
        os.close(here)
        assert process.wait(timeout=30) == 0
        assert not alive(child)
        assert list(tmp_path.glob("trimvla-*")) == []
    finally:
        process.kill()


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal (Python's default counts for
    SIGINT only).
    """
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    caught = int(rows["SigCgt"], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("state", ["starting", "up"])
def test_nobody_counts_as_silent_for_a_time_in_which_nobody_looked(
    tmp_path: Path, state: str
) -> None:
    """The supervisor was stopped, or the host suspended: its processes were too, and they are
    well.
    """
    post = children.ManagedProcess(
        Program("policy", python("import time; time.sleep(60)"), silent_s=5.0, start_s=5.0),
        tmp_path,
    )
    post.ready = False
    post.start()
    try:
        hour = 3600 * 10**9
        post.started_ns -= hour
        said = Report(time_ns=post.started_ns, process="policy", state=state)
        post.receive(said, 3600.0, awake_ns=monotonic_ns())
        assert post.child is not None and post.child.status() is None and not post.lost
        post.receive(said, 3600.0, awake_ns=monotonic_ns() - 6 * 10**9)
        assert "not reported for 6" in post.lost or "not ready within 5" in post.lost
    finally:
        if post.child is not None:
            post.child.kill()


def test_a_stopped_supervisor_kills_nobody_when_it_goes_on(tmp_path: Path) -> None:
    with Supervisor([reporting(tmp_path, "policy", silent_s=1.5)], tmp_path) as group:
        assert checked(group, lambda: all(post.ready for post in group.posts))
        pids = [child.pid for child in group.children]
        os.kill(pids[0], signal.SIGSTOP)  # and so is the process, as in a suspend
        time.sleep(2.5)  # and the supervisor does not look
        group.check()
        os.kill(pids[0], signal.SIGCONT)
        end = time.monotonic() + 3
        assert checked(group, lambda: time.monotonic() > end)
        assert [child.pid for child in group.children] == pids
