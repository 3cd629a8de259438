"""`trimvla eval`: one bundle, or two on the same seeds; what it promises as JSON and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.evaluate import sentence
from trimvla.runtime import manifest as bundles

ALONE = {
    "ok", "bundle", "env", "backend", "success_rate", "interval", "episodes", "successes", "by_verb", "mean_steps",
    "outcomes", "seed", "variant", "swap_instruction", "execute",
}  # fmt: skip
COMPARED = {
    "difference", "interval", "bootstrap_interval", "confidence", "both", "candidate_only", "reference_only",
    "neither", "p_value", "margin", "lower_bound", "non_inferior",
}  # fmt: skip


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


def test_a_bundle_against_another(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--episodes", "2", "--execute", "16", "--swap-instruction", "--variant", "lighting", "--margin", "0.1")
    status, told, card = evaluate(capsys, pair[0], "--against", pair[1], *words)
    comparison = told["comparison"]
    assert status == 0
    assert set(told) == ALONE | {"against", "comparison"}
    assert set(told["against"]) == ALONE - {"ok", "env", "backend"}
    assert set(comparison) == COMPARED
    assert (told["bundle"], told["against"]["bundle"]) == pair
    for side in (told, told["against"]):
        assert (side["episodes"], len(side["outcomes"]), side["seed"]) == (2, 2, 1000)
        assert (side["variant"], side["swap_instruction"]) == ("lighting", True)
    assert sum(comparison[key] for key in ("both", "candidate_only", "reference_only", "neither")) == 2
    assert (comparison["margin"], comparison["lower_bound"]) == (0.1, comparison["interval"][0])
    assert not comparison["non_inferior"], "two episodes prove nothing"
    assert "do not settle" in " ".join(card.split())
    assert "the reference" in card


@pytest.mark.parametrize("words", [("no-such-bundle",), ("{first}", "--against", "no-such-bundle")])
def test_an_unknown_bundle(words: tuple[str, ...], pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, told, errors = evaluate(capsys, *(word.format(first=pair[0]) for word in words))
    assert status == 1
    assert "got 'no-such-bundle'" in told["error"]
    assert "Traceback" not in errors


def test_a_bundle_for_another_robot(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
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
    assert told["error"] == (
        "expected at least 1 for --episodes, --workers; expected 0 < --margin < 1 (0.05 is five points), got 5.0"
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
    numbers = {"interval": interval, "non_inferior": non_inferior, "margin": 0.05, "difference": 0.01, "p_value": 0.3}
    assert words in sentence("a", "b", numbers)


def test_an_interrupt_stops_the_workers_quietly(pair: tuple[str, str], tmp_path: Path) -> None:
    words = ["eval", pair[0], "--against", pair[1], "--episodes", "900", "--workers", "2", "--json"]
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimvla.launch.cli", *words],
            stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    workers = wait_for_workers(process.pid, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output = process.communicate(timeout=60)[0]
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
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        if len(workers) == count:
            return workers
        time.sleep(0.05)
    raise AssertionError(f"expected {count} workers within 60 s")


@pytest.mark.slow
def test_the_shipped_policy_against_itself(tabletop_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(tabletop_bundle), "--against", "tabletop", "--episodes", "2", "--execute", "4")
    told, spread = (evaluate(capsys, *words, "--workers", workers)[1] for workers in ("1", "2"))
    assert told == spread
    assert told["outcomes"] == told["against"]["outcomes"]
    assert told["mean_steps"] == told["against"]["mean_steps"]
    assert (told["comparison"]["candidate_only"], told["comparison"]["reference_only"]) == (0, 0)
    assert told["comparison"]["interval"][0] < 0 < told["comparison"]["interval"][1]
