"""The demo: first the sockets and timing with the expert as policy, then the whole program as a
user starts it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.demo.play import plan
from trimvla.launch.system.client import NoAnswerError
from trimvla.launch.system.episodes import EpisodeClient, Request
from trimvla.launch.system.setup.sections import configure, read_system
from trimvla.launch.verbs.demo import SLOW_PERIODS
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.control import process as control
from trimvla.sim.robots.robot import PUBLISHES, TabletopRobot, act, publish
from trimvla.sim.tabletop import expert

FAST_HZ = 20.0  # four times real time
PATIENCE_S = 120.0  # on a machine that is busy with other things too
PROMISED = {
    "success",
    "episodes",
    "control_hz",
    "inference_ms",
    "photon_to_action_ms",
    "frames",
    "video",
}


def expert_system(run_dir: Path, stop: threading.Event) -> None:
    """Robot and policy in one: after every step the expert publishes the next chunk on the
    bus.
    """
    robot = TabletopRobot()
    telemetry = Telemetry("robot")
    publishers = [Publisher(run_dir, topic(name)) for name in PUBLISHES]
    chunks = Publisher(run_dir, topic("chunk"))
    inputs = Subscriber(run_dir, [topic("task"), topic("command")])
    while not stop.is_set():
        inputs.update(1 / 50)
        act(robot, inputs, telemetry)
        publish(robot, publishers)
        if robot.ready:
            chunks.send(expert_chunk(robot))
    for closing in (inputs, chunks, *publishers, robot):
        closing.close()


def expert_chunk(robot: TabletopRobot) -> ActionChunk:
    scene = robot.env.scene()
    now = monotonic_ns()
    actions = expert.chunk(scene, robot.env.state(), scene.goal)
    return ActionChunk(
        time_ns=now,
        episode=robot.episode,
        actions=tuple(map(tuple, actions.tolist())),
        control_hz=FAST_HZ,
        kinds=tiny_bundle.KINDS,
        instruction=robot.env.instruction,
        valid_rows=8,
        produced_ns=now,
        frame_sequence=0,
        seed=(),
    )


@pytest.fixture
def expert_run(tmp_path: Path) -> Iterator[Path]:
    """The expert behind the sockets, with the real control loop."""
    stop = threading.Event()
    section = read_system("demo", [f"control.hz={FAST_HZ}"])["control"]
    config = configure("control", section)[1]
    threads = [
        threading.Thread(target=expert_system, args=(tmp_path, stop)),
        threading.Thread(target=control.run, args=(config, tmp_path, stop)),
    ]
    for thread in threads:
        thread.start()
    yield tmp_path
    stop.set()
    for thread in threads:
        thread.join(5)


def test_the_expert_reaches_its_goals_through_the_sockets(expert_run: Path) -> None:
    requests = plan(4, 40, "default")
    with EpisodeClient(expert_run, ["control"], lambda: None) as director:
        recordings = [director.play(request) for request in requests]
        control_report = director.last_reports()["control"]
    assert [recording.success for recording in recordings] == [True] * 4
    for recording in recordings:
        steps = [state.step for state in recording.states]
        assert steps == sorted(set(steps)), "each state once, in order"
        assert steps[0] == 0
        assert steps[-1] == recording.steps
    assert control_report.counters["actions"] >= sum(recording.steps for recording in recordings)
    assert control_report.values["hz_achieved"] == pytest.approx(FAST_HZ, rel=0.3), (
        "on a machine that is busy"
    )


def test_a_system_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimvla.launch.system.episodes.SET_TIMEOUT_S", 0.2)
    expected = pytest.raises(
        NoAnswerError, match=r"the table to be set within 0\.2 s; control is starting"
    )
    with EpisodeClient(tmp_path, ["control"], lambda: None) as director, expected:
        director.play(Request(1, 0, "pick up the red cube"))


def test_the_plan_has_different_instructions() -> None:
    requests = plan(6, 0, "default")
    assert len({request.instruction for request in requests}) == 6
    assert [request.number for request in requests] == [1, 2, 3, 4, 5, 6]
    assert plan(6, 0, "default") == requests


def test_a_missing_bundle_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["demo", "no-such-bundle", "--json"]) == 1
    assert "no-such-bundle" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


@pytest.fixture
def quick_demo(tmp_path: Path) -> list[str]:
    """The demo's command line with a bundle that moves without sense, four times as fast."""
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny", control_hz=FAST_HZ)
    program = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "demo",
        str(bundle),
        "--episodes",
        "1",
        "--json",
    ]
    return [*program, "--control.hz", str(FAST_HZ), "--video", str(tmp_path / "film.mp4")]


@pytest.fixture
def home() -> Iterator[Path]:
    """Where temporary files lie: sockets' paths are short, and `tmp_path` is not where tests run in
    several workers.
    """
    with tempfile.TemporaryDirectory(prefix="demo-") as place:
        yield Path(place)


def temporary(home: Path) -> dict[str, str]:
    """An environment whose temporary files lie in one known place."""
    return {**os.environ, "TMPDIR": str(home)}


def test_the_program_runs_processes_and_leaves_nothing(quick_demo: list[str], home: Path) -> None:
    done = subprocess.run(
        quick_demo, env=temporary(home), capture_output=True, text=True, timeout=300, check=False
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) >= PROMISED, done.stderr
    assert done.returncode == (0 if result["success"] else 1)
    assert result["frames"]["used"] > 0
    assert result["control_hz"]["asked"] == FAST_HZ
    assert result["photon_to_action_ms"]["p50"] > 0
    assert cv2.VideoCapture(result["video"]).read()[0]
    assert not list(home.glob("trimvla-*"))


def test_an_interrupt_stops_everything(quick_demo: list[str], home: Path) -> None:
    process = subprocess.Popen(
        quick_demo, env=temporary(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    children = wait_for_children(process.pid, 4)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130
    assert json.loads(output.splitlines()[-1]) == {"ok": False, "error": "interrupted"}
    assert wait_until_gone(children)
    assert not list(home.glob("trimvla-*"))


def wait_for_children(pid: int, count: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.parent.parent.exists() or not path.exists():
        pytest.skip("this kernel does not list children")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        children = [int(word) for word in path.read_text().split()]
        if len(children) >= count:
            return children
        time.sleep(0.05)
    raise AssertionError(f"expected {count} children within {PATIENCE_S:g} s")


def wait_until_gone(pids: list[int]) -> bool:
    """A child that was just being started ends by itself, when it finds its parent gone."""
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.usefixtures("tabletop_bundle")
def test_the_shipped_policy_does_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["demo", "--episodes", "3", "--video", str(tmp_path / "film.gif"), "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    if result["inference_ms"]["p50"] > SLOW_PERIODS * 1e3 / result["control_hz"]["asked"]:
        pytest.skip(
            "this machine is too busy for real time: inference takes"
            f" {result['inference_ms']['p50']} ms"
        )
    assert (status, result["ok"]) == (0, True)
    assert result["episodes"] == 3
    assert result["success"] >= 1
    assert result["control_hz"]["achieved"] == pytest.approx(result["control_hz"]["asked"], rel=0.1)
