"""A recorded run is done again: real processes, real sockets, and the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap")

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.replay.recorded_policy import choose_bundles, recorded_policy
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import ActionChunk, Frame, Task
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.runtime.inference.board_sensors import Board
from trimvla.runtime.inference.ladder import LadderConfig
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.rungs import load_rungs
from trimvla.runtime.inference.scheduler import InferenceScheduler
from trimvla.runtime.preprocess.observation import one_image
from trimvla.runtime.record.recording import Recording, RecordingWriter, fact
from trimvla.runtime.record.replay import Calls, replay

CHUNKS = 5
TIMEOUT_S = 60.0
RUNGS = {"top": 1.0, "bottom": 0.5}  # and their gains
SYSTEM = """
[camera-front]
process = "camera"
name = "front"
kind = "synthetic"
width = 40
height = 30
hz = 10.0
codec = "{codec}"

[policy]
bundle = '{bundle}'
threads = 1
seed = 7
budget.frame_s = 30.0
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def run_file(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Camera, policy and recorder as processes, with JPEG images, until there were a few
    chunks.
    """
    home = tmp_path_factory.mktemp("run")
    (home / "system.toml").write_text(SYSTEM.format(codec="jpeg", bundle=bundle))
    program = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "run",
        str(home / "system.toml"),
        "--json",
    ]
    options = [
        "--task",
        "pick up the red cube",
        "--record",
        str(home / "run.mcap"),
        "--run-dir",
        str(home),
    ]
    with (
        Subscriber(home, [topic("chunk")]) as hears,
        subprocess.Popen([*program, *options], stdout=subprocess.PIPE, text=True) as process,
    ):
        deadline = time.monotonic() + TIMEOUT_S
        while (
            hears["chunk"].received < CHUNKS
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            hears.update(0.1)
        process.send_signal(signal.SIGINT)
        result = json.loads(process.communicate(timeout=30)[0].splitlines()[-1])
    assert result["ok"], result
    assert result["recording"]["frames"] > 0
    return home / "run.mcap"


def answer(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_recorded_run_replays_bit_for_bit(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(run_file), "--recorded-paths", "--json"]) == 0
    result = answer(capsys)
    assert result["calls"] == result["repeated"] + sum(result["left_out"].values())
    assert result["exact"] == result["repeated"] > 0
    assert (result["worst"], result["cut_off"], result["differs_here"]) == (None, False, {})


def test_a_run_replays_bit_for_bit_after_a_journey_through_ros(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rosbags", reason="needs rosbags, of the extra `ros`")
    bag = str(tmp_path / "bag")
    back = str(tmp_path / "back.mcap")
    assert cli.main(["record", str(run_file), "--ros2", bag, "--json"]) == 0
    assert cli.main(["record", back, "--from-ros2", bag, "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["replay", back, "--recorded-paths", "--json"]) == 0
    result = answer(capsys)
    assert result["exact"] == result["repeated"] > 0
    assert cli.main(["inspect", back, "--recorded-paths", "--out", f"{bag}.png", "--json"]) == 0
    assert answer(capsys)["same_as_recorded"]


def test_the_recording_says_what_ran(run_file: Path, bundle: Path) -> None:
    recording = Recording(run_file)
    assert recorded_policy(recording).bundle == str(bundle)
    assert (fact(recording, "versions", dict[str, str]) or {})["numpy"] == np.__version__
    chunks = [entry.message for entry in recording.entries(lambda name: name == "chunk")]
    assert all(isinstance(chunk, ActionChunk) and chunk.seed[0] == 7 for chunk in chunks)
    assert {chunk.instruction for chunk in chunks if isinstance(chunk, ActionChunk)} == {
        "pick up the red cube"
    }
    topics = {entry.topic for entry in recording}
    assert {"task", "chunk", "front/color", "policy/report", "camera-front/report"} <= topics


def test_another_bundle_gives_other_actions_and_says_so(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_bundle.write_bundle(tmp_path / "other", gain=0.9)
    assert cli.main(["replay", str(run_file), "--bundle", str(other), "--json"]) == 1
    result = answer(capsys)
    assert result["exact"] < result["repeated"]
    assert 0 < result["worst"]["largest"] <= 1.0
    assert (
        cli.main(["replay", str(run_file), "--bundle", str(other), "--tolerance", "1.0", "--json"])
        == 0
    )


def test_a_bundle_whose_actions_mean_something_else_is_refused(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_bundle.write_bundle(tmp_path / "other", kinds=("absolute",) * 6 + ("gripper",))
    assert cli.main(["replay", str(run_file), "--bundle", str(other), "--json"]) == 1
    error = answer(capsys)["error"]
    assert (
        "expected actions of [6 delta, gripper] at 5 Hz, got [6 absolute, gripper] at 5 Hz" in error
    )


def test_the_inspected_call_is_the_recorded_one(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "call.png"
    options = ["--recorded-paths", "--call", "-1", "--out", str(picture), "--json"]
    assert cli.main(["inspect", str(run_file), *options]) == 0
    result = answer(capsys)
    assert result["same_as_recorded"] is True
    assert result["seed"][0] == 7
    assert picture.stat().st_size > 0


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Policy:
    return Policy.load(bundle, threads=1)


def frame(number: int) -> Frame:
    image = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    return Frame("front", 1000 + number, image, number)


def chunk_of(policy: Policy, seen: Frame, **changes) -> ActionChunk:
    seed = (0, 1, seen.sequence)
    actions = policy.infer(seen.image, "pick up the cube", seed=seed).actions
    values = {
        "time_ns": seen.time_ns,
        "sequence": seen.sequence,
        "episode": 1,
        "actions": tuple(map(tuple, actions.tolist())),
        "control_hz": 5.0,
        "valid_rows": 8,
        "produced_ns": seen.time_ns + 1,
        "frame_sequence": seen.sequence,
        "seed": seed,
        "instruction": "pick up the cube",
    }
    return ActionChunk(**{**values, **changes})


def record(
    path: Path, messages: list[Frame | ActionChunk], facts: dict[str, str] | None = None
) -> Recording:
    with path.open("wb") as stream:
        writer = RecordingWriter(stream, facts or {})
        for message in messages:
            row = topic("front/color" if isinstance(message, Frame) else "chunk")
            writer.add(row, message.time_ns, wire.encode(row, message))
        writer.finish()
    return Recording(path)


def test_one_changed_bit_is_found(policy: Policy, tmp_path: Path) -> None:
    seen = [frame(number) for number in range(3)]
    chunks = [chunk_of(policy, one) for one in seen]
    rows = [list(row) for row in chunks[1].actions]
    rows[4][2] = float(np.nextafter(rows[4][2], 1.0))
    altered = chunk_of(policy, seen[1], actions=tuple(map(tuple, rows)))
    outcome = replay(record(tmp_path / "a.mcap", [*seen, chunks[0], altered, chunks[2]]), policy)
    assert (outcome.calls, outcome.repeated, outcome.exact) == (3, 3, 2)
    assert outcome.worst is not None
    assert (outcome.worst.chunk, outcome.worst.row, outcome.worst.dimension) == (1, 4, 2)
    assert 0 < outcome.worst.largest < 1e-15
    assert not outcome.same()
    assert outcome.same(tolerance=1e-12)


def test_calls_that_cannot_be_repeated_are_named(policy: Policy, tmp_path: Path) -> None:
    early = frame(0)
    first = frame(1)
    lost = frame(2)
    chunks = [chunk_of(policy, one) for one in (early, first, lost)]
    before = replay(record(tmp_path / "before.mcap", [first, *chunks[:2]]), policy)
    assert before.left_out == {"its image is from before the recording": 1}
    assert before.same(), "nothing was lost: the recorder came later"
    gap = replay(record(tmp_path / "gap.mcap", [first, *chunks[1:]]), policy)
    assert gap.left_out == {"its image is not in the recording": 1}
    assert not gap.same()
    mute = replay(record(tmp_path / "mute.mcap", [first, chunk_of(policy, first, seed=())]), policy)
    assert mute.left_out == {"the chunk has no seed or no instruction": 1}
    assert not mute.same()


def test_another_shape_is_a_difference(policy: Policy, tmp_path: Path) -> None:
    seen = frame(0)
    short = chunk_of(policy, seen, actions=((0.0,) * 7,), valid_rows=1)
    outcome = replay(record(tmp_path / "a.mcap", [seen, short]), policy)
    assert outcome.worst is not None
    assert outcome.worst.largest == float("inf")


def test_two_calls_on_one_picture_are_both_repeated(policy: Policy, tmp_path: Path) -> None:
    seen = frame(0)
    chunks = [chunk_of(policy, seen), chunk_of(policy, seen, sequence=1)]
    calls = Calls(record(tmp_path / "a.mcap", [seen, *chunks]))
    assert [call.chunk.sequence for call in calls] == [0, 1]
    assert [call.chunk.sequence for call in calls] == [0, 1], "and once more"


def test_a_recording_without_a_bundle_asks_for_one(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "a.mcap", [frame(0), chunk_of(policy, frame(0))])
    assert cli.main(["replay", str(tmp_path / "a.mcap"), "--json"]) == 1
    assert "expected --bundle" in answer(capsys)["error"]


def test_a_recording_cannot_choose_what_is_run(
    run_file: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for verb in ("replay", "inspect"):
        assert cli.main([verb, str(run_file), "--json"]) == 1
        error = answer(capsys)["error"]
        assert "expected --bundle, or --recorded-paths" in error and str(bundle) in error
    system = {"policy": {"bundle": "tabletop-mine"}}
    named = record(tmp_path / "a.mcap", [frame(0)], {"system": json.dumps(system)})
    tiny_bundle.write_bundle(tmp_path / "tabletop-mine")
    monkeypatch.chdir(tmp_path)  # a folder beside the recording is no shipped bundle either
    assert cli.main(["replay", str(named.path), "--json"]) == 1
    assert "which are no shipped bundles" in answer(capsys)["error"]
    shipped = record(
        tmp_path / "b.mcap", [frame(0)], {"system": json.dumps({"policy": {"bundle": "tabletop"}})}
    )
    tiny_bundle.write_bundle(tmp_path / "tabletop")
    assert (
        tmp_path
        not in choose_bundles(shipped, None, recorded_paths=False)["tabletop"].resolve().parents
    )


def test_rungs_and_guidance_replay_bit_for_bit(tmp_path: Path) -> None:
    """Each call with the bundle that made it, guided by the chunk that guided it; another bundle
    would not do.
    """
    names = [
        str(tiny_bundle.write_bundle(tmp_path / name, gain=gain, guided=True))
        for name, gain in RUNGS.items()
    ]
    config = PolicyConfig(
        rungs=tuple(names), rtc=RtcConfig(enabled=True), ladder=LadderConfig(dwell_s=1.0)
    )
    policies = load_rungs(config)
    now = [0]
    board = [Board(40.0)]
    scheduler = InferenceScheduler(
        policies,
        config.thought,
        costs_s=(0.1, 0.1),
        kinds=tiny_bundle.KINDS,
        sense=lambda: board[0],
        now_ns=lambda: now[0],
    )
    messages: list[Frame | ActionChunk] = []
    task = Task(time_ns=0, episode=1, instruction="pick up the cube", started_ns=0)
    for number in range(12):
        now[0] = number * 10**9
        board[0] = Board(90.0 if 4 <= number < 8 else 40.0)
        seen = replace(frame(number), time_ns=now[0])
        thought = scheduler.run(
            task,
            one_image(seen.image, task.instruction),
            seen.time_ns,
            (0, 1, number),
            Telemetry("policy"),
        )
        actions = tuple(map(tuple, thought.result.actions.tolist()))
        said = chunk_of(policies[names[0]], seen, actions=actions, **thought.about)
        scheduler.published(said)
        messages += [seen, said]
    chunks = [message for message in messages if isinstance(message, ActionChunk)]
    assert [chunk.rung for chunk in chunks] == names[:1] * 4 + names[1:] * 4 + names[:1] * 4
    assert [chunk.guidance is not None for chunk in chunks] == [False] + [True] * 11
    recording = record(tmp_path / "whole.mcap", messages)
    outcome = replay(recording, policies[names[0]], policies)
    assert (outcome.repeated, outcome.exact, outcome.same()) == (12, 12, True)
    assert replay(recording, policies[names[0]]).exact == 8
    late = replay(record(tmp_path / "late.mcap", messages[2:]), policies[names[0]], policies)
    assert (late.repeated, late.exact) == (10, 10)
    assert (
        late.left_out == {"the chunk that guided it is from before the recording": 1}
        and late.same()
    )
    gap = replay(
        record(tmp_path / "gap.mcap", [*messages[:7], *messages[8:]]), policies[names[0]], policies
    )
    assert (
        gap.left_out == {"the chunk that guided it is not in the recording": 1} and not gap.same()
    )
