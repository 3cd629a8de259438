"""A topic has one publisher, over real sockets and processes: a second one is refused, a dead one
is followed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from trimvla.launch import cli
from trimvla.runtime.bus.claim import sweep
from trimvla.runtime.bus.messages import JointState, Report, Task
from trimvla.runtime.bus.network import Network, RemoteTopic, install
from trimvla.runtime.bus.sockets import Publisher, Subscriber, endpoint
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import ConfigError

STATE = topic("robot/state")
PATIENCE_S = 30.0

PUBLISH = """
import sys, time
from pathlib import Path
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.bus.messages import JointState
from trimvla.runtime.bus.topics import topic
try:
    publisher = Publisher(Path(sys.argv[1]), topic("robot/state"))
except ConfigError as error:
    sys.exit(str(error))
print("up", flush=True)
while True:
    publisher.send(JointState(time_ns=1, position=(), gripper=float(sys.argv[2])))
    time.sleep(0.02)
"""


def publishing(run_dir: Path, gripper: float) -> subprocess.Popen[str]:
    """A driver of its own."""
    words = [sys.executable, "-c", PUBLISH, str(run_dir), str(gripper)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def driver(run_dir: Path, gripper: float) -> Iterator[subprocess.Popen[str]]:
    with publishing(run_dir, gripper) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def until(
    true: Callable[[], bool], meanwhile: Callable[[], object] = lambda: time.sleep(0.02)
) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        meanwhile()


def gripper(inputs: Subscriber) -> float | None:
    inputs.update(0.02)
    message = inputs["robot/state"].message
    return message.gripper if isinstance(message, JointState) else None


def test_a_second_publisher_is_refused_and_readers_keep_the_first(tmp_path: Path) -> None:
    with driver(tmp_path, 0.25) as first, Subscriber(tmp_path, [STATE]) as old:
        until(lambda: gripper(old) == 0.25)
        with publishing(tmp_path, 0.75) as second:
            words = second.communicate(timeout=PATIENCE_S)[1]
        assert second.returncode == 1
        owner = (
            f"expected no other publisher of 'robot/state' in {tmp_path}, got process {first.pid}"
            " (-c "
        )
        assert words.startswith(f"topic 'robot/state': cannot bind: {owner}")
        with pytest.raises(ConfigError, match=f"got process {first.pid}"):
            Publisher(tmp_path, STATE)
        with Subscriber(tmp_path, [STATE]) as new:
            received = new["robot/state"].received, old["robot/state"].received
            until(lambda: gripper(new) == gripper(old) == 0.25)
            until(
                lambda: new["robot/state"].received > received[0] + 5 and gripper(old) == 0.25,
                new.update,
            )


def test_a_second_publisher_in_one_process_is_refused(tmp_path: Path) -> None:
    with (
        Publisher(tmp_path, STATE),
        pytest.raises(ConfigError, match=f"got process {os.getpid()} \\("),
    ):
        Publisher(tmp_path, STATE)
    with Publisher(tmp_path, STATE):  # as soon as the first is closed, and for as long as it is not
        time.sleep(0.3)  # in which ZeroMQ ends the first's socket
        assert (tmp_path / "robot-state").is_socket()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_publisher_left_is_taken_over_and_its_readers_follow(
    tmp_path: Path, number: int
) -> None:
    with Subscriber(tmp_path, [STATE]) as inputs:
        with driver(tmp_path, 0.25) as first:
            until(lambda: gripper(inputs) == 0.25)
            first.send_signal(number)
            first.wait()
        assert (tmp_path / "robot-state").is_socket()
        with driver(tmp_path, 0.75):
            until(lambda: gripper(inputs) == 0.75)


def test_a_stopped_publisher_keeps_its_topic(tmp_path: Path) -> None:
    with driver(tmp_path, 0.25) as first:
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match=f"got process {first.pid}"):
            Publisher(tmp_path, STATE)
        sweep(tmp_path)
        assert (tmp_path / "robot-state").is_socket() and (tmp_path / "robot-state.lock").exists()


def test_a_publisher_without_a_lock_is_not_displaced(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as raw:
        raw.bind(endpoint(tmp_path, STATE))
        before = (tmp_path / "robot-state").stat().st_ino
        with pytest.raises(ConfigError, match="got a process without a lock"):
            Publisher(tmp_path, STATE)
        assert (tmp_path / "robot-state").stat().st_ino == before
        assert [path.name for path in tmp_path.iterdir()] == ["robot-state"]


def test_only_its_own_socket_is_removed(tmp_path: Path) -> None:
    with Publisher(tmp_path, STATE):
        (tmp_path / "robot-state").unlink()  # somebody cleans up, and another program binds
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(tmp_path / "robot-state"))
    with other:
        time.sleep(0.3)
        assert [path.name for path in tmp_path.iterdir()] == ["robot-state"]


def test_a_sweep_removes_what_killed_processes_left(tmp_path: Path) -> None:
    with driver(tmp_path, 0.0) as dead:
        dead.kill()
        dead.wait()
    with Publisher(tmp_path, topic("task")):
        sweep(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["task", "task.lock"]


def test_a_second_publisher_over_tcp_is_refused(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {"robot/state": RemoteTopic(f"tcp://127.0.0.1:{port}")}
    for name in ("here", "there"):
        (tmp_path / name).mkdir(0o700)
        install(Network(places), tmp_path / name)
    with Publisher(tmp_path / "here", STATE):
        with pytest.raises(ConfigError, match=f"got process {os.getpid()}"):
            Publisher(tmp_path / "here", STATE)
        with pytest.raises(
            ConfigError, match=f"cannot bind 'tcp://127.0.0.1:{port}': Address already in use"
        ):
            Publisher(tmp_path / "there", STATE)
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["network.json"]


# The verbs

SYSTEM = """
[camera]
kind = "synthetic"
width = 64
height = 48

[control]
hz = 10
[control.limits]
low = [-0.01, -0.01, -0.01, -0.02, -0.02, -0.02, 0.0]
high = [0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 1.0]
"""


@contextmanager
def system(run_dir: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`trimvla run` of a camera and a control loop, in a process."""
    file = run_dir.parent / "system.toml"
    file.write_text(SYSTEM)
    program = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "run",
        str(file),
        "--run-dir",
        str(run_dir),
        *words,
    ]
    process = subprocess.Popen(program)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_run_without_a_task_leaves_the_topic_to_others(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(0o700)
    with Subscriber(run_dir, [topic("control/report")]) as hears, system(run_dir):

        def reason() -> str:
            hears.update(0.1)
            report = hears["control/report"].message
            return report.reason if isinstance(report, Report) else ""

        until(lambda: reason() == "no live task")
        began = monotonic_ns()
        with Publisher(run_dir, topic("task")) as tasks:

            def repeat() -> None:
                tasks.send(
                    Task(time_ns=monotonic_ns(), episode=1, instruction="go", started_ns=began)
                )

            until(lambda: reason() != "no live task", repeat)


def test_run_with_a_task_owns_the_topic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(0o700)
    both = [topic("task"), topic("front/color")]
    with Subscriber(run_dir, both) as hears, system(run_dir, "--task", "go") as running:
        assert all(hears.wait_for(row.name, PATIENCE_S) for row in both)
        with pytest.raises(
            ConfigError, match=f"publisher of 'task' in .*, got process {running.pid} \\(.*run"
        ):
            Publisher(run_dir, topic("task"))
        words = ["camera", "--kind", "synthetic", "--run-dir", str(run_dir), "--seconds", "5"]
        assert cli.main(words) == 1
        assert "expected no other publisher of 'front/color'" in capsys.readouterr().err
    file = str(tmp_path / "system.toml")
    with Publisher(run_dir, topic("task")):
        assert cli.main(["run", file, "--run-dir", str(run_dir), "--task", "go", "--json"]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert f"publisher of 'task' in {run_dir}, got process {os.getpid()}" in said["error"]
    assert not [path for path in run_dir.iterdir() if path.is_socket()]
