"""`trimvla eval`: one bundle, or two on the same seeds; what it promises as JSON and what it
refuses.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.evaluation.match import prepare
from trimvla.launch.evaluation.options import Args, Chunks
from trimvla.launch.evaluation.report import conclusion, film_names
from trimvla.runtime.bundle import manifest as bundles
from trimvla.sim.evaluation.statistics import compare

ALONE = {
    "ok",
    "bundle",
    "env",
    "backend",
    "success_rate",
    "interval",
    "episodes",
    "successes",
    "by_verb",
    "mean_steps",
    "outcomes",
    "motion",
    "seed",
    "variant",
    "swap_instruction",
    "execute",
}
COMPARED = {
    "difference",
    "interval",
    "bootstrap_interval",
    "confidence",
    "both",
    "candidate_only",
    "reference_only",
    "neither",
    "p_value",
    "margin",
    "lower_bound",
    "non_inferior",
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Two bundles that move without sense, each in its own way."""
    first = tiny_bundle.write_bundle(tmp_path / "first")
    return str(first), str(tiny_bundle.write_bundle(tmp_path / "second", gain=0.5))


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    status = cli.main(["eval", *words, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out.splitlines()[-1]), captured.err


def test_one_bundle_alone(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, told, _ = evaluate(capsys, pair[0], "--episodes", "1", "--execute", "16")
    assert (status, set(told)) == (0, ALONE)


def test_a_bundle_against_another(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--episodes",
        "2",
        "--execute",
        "16",
        "--swap-instruction",
        "--variant",
        "lighting",
        "--margin",
        "0.1",
    )
    status, told, card = evaluate(capsys, pair[0], "--against", pair[1], *words)
    comparison = told["comparison"]
    assert status == 0
    assert set(told) == ALONE | {"against", "comparison", "motion_comparison"}
    assert set(told["against"]) == ALONE - {"ok", "env", "backend"}
    assert set(comparison) == COMPARED
    assert (told["bundle"], told["against"]["bundle"]) == pair
    for side in (told, told["against"]):
        assert (side["episodes"], len(side["outcomes"]), side["seed"]) == (2, 2, 1000)
        assert (side["variant"], side["swap_instruction"]) == ("lighting", True)
    assert (
        sum(comparison[key] for key in ("both", "candidate_only", "reference_only", "neither")) == 2
    )
    assert (comparison["margin"], comparison["lower_bound"]) == (0.1, comparison["interval"][0])
    assert not comparison["non_inferior"], "two episodes prove nothing"
    assert "do not settle" in " ".join(card.split())
    moved = told["motion_comparison"]
    assert (moved["episodes"], moved["moves_worse"]) == (2, False), "two episodes prove nothing"
    assert moved["jerk"]["candidate"] != moved["jerk"]["reference"] > 0
    for side in (told, told["against"]):
        assert [each["kind"] for each in side["motion"]["dimensions"]] == [
            *["delta"] * 6,
            "gripper",
        ]
        assert side["motion"]["dimensions"][0]["jerk_p99"] > 0
        assert side["motion"]["dimensions"][0]["limit_distance"] is not None
    assert "moves worse" in " ".join(card.split())
    assert "reference" in card  # wrapped where the paths are long


@pytest.mark.parametrize("words", [("no-such-bundle",), ("{first}", "--against", "no-such-bundle")])
def test_an_unknown_bundle(
    words: tuple[str, ...], pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, told, errors = evaluate(capsys, *(word.format(first=pair[0]) for word in words))
    assert status == 1
    assert "got 'no-such-bundle'" in told["error"]
    assert "Traceback" not in errors


def test_a_bundle_for_another_robot(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = bundles.load(Path(pair[1]))
    action = msgspec.structs.replace(manifest.action, control_hz=10.0)
    bundles.write(Path(pair[1]), msgspec.structs.replace(manifest, action=action))
    status, told, _ = evaluate(capsys, pair[0], "--against", pair[1])
    assert status == 1
    assert "for the same task: 'action.control_hz' is 10.0 in" in told["error"]
    assert "got 5.0 in" in told["error"]


def test_everything_out_of_range_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    status, told, errors = evaluate(capsys, "--episodes", "0", "--workers", "0", "--margin", "5")
    assert status == 1
    assert (
        told["error"]
        == "expected at least 1 for --episodes, --workers; expected 0 < --margin < 1 (0.05 is five"
        " points), got 5.0"
    )
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("interval", "non_inferior", "words"),
    [
        ((-0.02, 0.04), True, "a is not inferior to b at a margin of 5 points"),
        ((-0.30, -0.10), False, "a is inferior to b by more than 5 points"),
        ((-0.08, 0.01), False, "do not settle whether a is inferior to b by 5 points"),
    ],
)
def test_the_sentence_says_no_more_than_the_interval(
    interval: tuple[float, float], non_inferior: bool, words: str
) -> None:
    paired = compare([True, False], [True, False], margin=0.05)
    numbers = replace(paired, interval=interval, non_inferior=non_inferior)
    assert words in conclusion("a", "b", numbers)


# As at a terminal, also where the tests run behind `nohup` or `&`, whose children ignore
# interrupts.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from trimvla.launch.cli import main
sys.exit(main())
"""


def test_an_interrupt_stops_the_workers_quietly(pair: tuple[str, str], tmp_path: Path) -> None:
    words = ["eval", pair[0], "--against", pair[1], "--episodes", "900", "--workers", "2", "--json"]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    workers = wait_for_workers(process.pid, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    try:
        output = process.communicate(timeout=60)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert json.loads(output.splitlines()[-1]) == {"ok": False, "error": "interrupted"}
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def wait_for_workers(pid: int, count: int) -> list[int]:
    """The children that `spawn` made, without its resource tracker."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("this kernel does not list children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = [int(word) for word in path.read_text().split()]
        workers = [
            child
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        if len(workers) == count:
            return workers
        time.sleep(0.05)
    raise AssertionError(f"expected {count} workers within 60 s")


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = 8
    out = tmp_path / "out"
    words = ["--policy", "expert", "--episodes", str(episodes), "--workers", "1", "--json"]
    log = out / "outcomes.jsonl"
    command = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "eval",
        *words,
        "--workers=2",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    least = random.randint(2, episodes)
    deadline = time.monotonic() + 120
    while process.poll() is None and (
        not log.exists() or len(log.read_text().splitlines()) < least
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = log.read_text().splitlines()[1:]
    with log.open("a") as file:
        # as a kill within a write would leave it
        file.write('{"role": "candidate", "seed": 1003, "verb"')
    told = evaluate(capsys, *words, "--out", str(out))[1]
    assert told == evaluate(capsys, *words)[1]
    lines = log.read_text().splitlines()[1:]
    assert lines[: len(before)] == before, "what was played is not played again"
    played = [json.loads(line)["seed"] for line in lines if line.endswith("}")]
    assert sorted(played) == list(range(1000, 1000 + episodes))
    assert f"{told['successes']}" in (out / "table.txt").read_text()
    assert (out / "picture.png").stat().st_size > 5000
    status, told, _ = evaluate(capsys, *words, "--variant", "lighting", "--out", str(out))
    assert status == 1
    assert 'with \'task\' "tabletop" instead of "tabletop:lighting"' in told["error"]


def test_a_ladder_over_latencies_and_a_film(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (
        "--rungs",
        pair[1],
        "--episodes",
        "1",
        "--execute",
        "16",
        "--latency",
        "0,3000",
        "--workers",
        "1",
    )
    status, told, card = evaluate(capsys, pair[0], *words, "--out", str(out), "--film", "0")
    assert status == 0
    assert [(row["bundle"], row["ms"]) for row in told["curve"]] == [
        (bundle, ms) for ms in (0.0, 3000.0) for bundle in pair
    ]
    assert [row["against_top"] is None for row in told["curve"]] == [True, False, True, False]
    assert [row["held"] for row in told["curve"][2:]] == [1.0, 1.0], (
        "after 3 s no row of a chunk is valid any more"
    )
    assert told["curve"][0]["held"] < 1
    assert {path.name for path in out.glob("*.mp4")} == {"candidate-1000.mp4", "second-1000.mp4"}
    assert "success against latency" in card
    assert "ended otherwise" not in card


def test_films_of_rungs_with_one_base_name_are_all_kept(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rungs = [tmp_path / part / "rung" for part in ("one", "other")]
    for rung in rungs:
        shutil.copytree(pair[1], rung)
    words = (
        "--rungs",
        str(rungs[0]),
        "--rungs",
        str(rungs[1]),
        "--episodes",
        "1",
        "--execute",
        "16",
    )
    out = tmp_path / "out"
    status, told, _ = evaluate(
        capsys, pair[0], *words, "--workers", "1", "--out", str(out), "--film", "0"
    )
    assert status == 0, told
    assert {path.name for path in out.glob("*.mp4")} == {
        "candidate-1000.mp4",
        "rung-1000.mp4",
        "rung-2-1000.mp4",
    }


def test_no_two_roles_share_a_films_name() -> None:
    names = film_names(["reference", "candidate", "a/x", "b/x", "x-2", "c/candidate"])
    assert list(names.values()) == ["reference", "candidate", "x", "x-2", "x-2-2", "candidate-2"]


@pytest.mark.parametrize(
    ("chunks", "mode", "guided"),
    [
        (None, None, False),
        ("latest", "latest", False),
        ("ensemble", "ensemble", False),
        ("blend", "blend", False),
        ("rtc", "latest", True),
    ],
)
def test_how_chunks_follow_is_chosen_by_a_word(
    chunks: Chunks | None, mode: str | None, guided: bool
) -> None:
    match = prepare(Args(latency="200", chunks=chunks))
    pace = match.setting.pace
    assert (pace.mode, pace.rtc.enabled, match.policies.guided) == (mode, guided, guided)


def test_real_time_chunks_are_played_by_a_guided_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tiny_bundle.write_bundle(tmp_path / "guided", guided=True))
    words = ("--episodes", "1", "--latency", "400", "--chunks", "rtc", "--workers", "1")
    status, told, _ = evaluate(capsys, bundle, *words)
    assert (status, told["chunks"], told["curve"][0]["ms"]) == (0, "rtc", 400.0)


def test_the_expert_plays_without_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "expert", "--episodes", "3", "--workers", "1")
    status, told, _ = evaluate(capsys, *words)
    assert (status, told["bundle"], told["successes"], told["execute"]) == (0, "expert", 3, 1)
    assert told == evaluate(capsys, *words)[1]
    status, told, _ = evaluate(capsys, *words, "--latency", "100")
    assert status == 1
    assert "no --latency with the scripted expert" in told["error"]


def test_what_was_measured_for_a_run_holds_for_all_of_it(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        pair[0],
        "--episodes",
        "1",
        "--execute",
        "16",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    status, told, _ = evaluate(capsys, *words, "--latency", "measured,wall")
    assert status == 0
    measured, wall = told["curve"]
    assert 0 < measured["ms"] < 1000
    assert wall["ms"] is None
    assert evaluate(capsys, *words, "--latency", "measured,wall")[1] == told


@pytest.mark.slow
def test_latencies_of_devices_are_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tabletop", "--episodes", "1", "--workers", "1")
    status, told, _ = evaluate(capsys, *words, "--latency", "orin,orin:0.5,thor")
    assert status == 0
    orin, half, thor = told["curve"]
    assert half["ms"] == pytest.approx(2 * orin["ms"], abs=0.01)
    assert 50 < thor["ms"] < orin["ms"] < 200, "CogACT-Base, not the tabletop policy"
    assert all(it["estimate"] and it["bundle_ms"] < 1 for it in told["estimates"])
    assert orin["outcomes"] == thor["outcomes"], "both cost one step"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--env", "kitchen"), "expected an environment that begins with one of"),
        (
            ("--env", "simpler_env:widowx_stack_cube", "--variant", "lighting"),
            "they are the tabletop's",
        ),
        (("--film", "0"), "expected --out for --film"),
        (("--chunks", "blend"), "expected --latency for --chunks blend"),
        (
            ("--chunks", "rtc", "--latency", "200"),
            "expected the mode 'guided': export it with --guided",
        ),
        (("--latency", "soon"), "expected milliseconds"),
        (("--latency", "orin:much"), "expected a device and the share"),
        (("--ray", "auto"), "ray"),
    ],
)
def test_what_cannot_be_played_is_said(
    words: tuple[str, ...], error: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, told, _ = evaluate(capsys, pair[0], "--episodes", "1", *words)
    assert status == 1
    assert error in told["error"]


@pytest.mark.slow
def test_the_shipped_policy_against_itself(
    tabletop_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (str(tabletop_bundle), "--against", "tabletop", "--episodes", "2", "--execute", "4")
    told, spread = (evaluate(capsys, *words, "--workers", workers)[1] for workers in ("1", "2"))
    assert told == spread
    assert told["outcomes"] == told["against"]["outcomes"]
    assert told["mean_steps"] == told["against"]["mean_steps"]
    assert (told["comparison"]["candidate_only"], told["comparison"]["reference_only"]) == (0, 0)
    assert told["comparison"]["interval"][0] < 0 < told["comparison"]["interval"][1]
