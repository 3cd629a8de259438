"""`trimvla eval` in an environment of one's own, as a user calls it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.sim.evaluation.virtual_time import Robot

WIDE = "tests.own_envs:make_wide:7"
NARROW = "tests.own_envs:make"


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = cli.main(["eval", *words, "--workers", "1", "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """One whose actions have seven numbers at 5 Hz."""
    return str(tiny_bundle.write_bundle(tmp_path / "tiny"))


def narrow_bundle(directory: Path, control_hz: float = 5.0, **kinds: Any) -> str:
    """One whose actions have three numbers."""
    return str(tiny_bundle.write_bundle(directory, dim=3, control_hz=control_hz, **kinds))


def test_the_expert_wins_it(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = evaluate(capsys, "--policy", "expert", "--env", NARROW, "--episodes", "6")
    assert (status, told["success_rate"], told["episodes"]) == (0, 1.0, 6)
    assert told["env"] == NARROW


def test_a_bundle_of_another_size_than_ours_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three numbers an action: noise, queue, hold, the curve over latencies, the film."""
    words = (
        "--env",
        NARROW,
        "--episodes",
        "2",
        "--latency",
        "0,300",
        "--out",
        str(tmp_path / "out"),
        "--film",
        "0",
    )
    status, told = evaluate(capsys, narrow_bundle(tmp_path / "narrow"), *words)
    assert status == 0
    assert [row["latency"] for row in told["curve"]] == ["0", "300"]
    assert told["curve"][1]["held"] > 0
    assert (tmp_path / "out" / "candidate-1000.mp4").stat().st_size > 0
    again, repeated = evaluate(capsys, narrow_bundle(tmp_path / "narrow"), *words)
    assert (again, repeated["outcomes"]) == (0, told["outcomes"])


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (NARROW, "expected actions of 3 numbers for 'tests.own_envs:make', got 7 of bundle"),
        ("gymnasium:Pendulum-v1", "1 numbers for 'gymnasium:Pendulum-v1', got 7 of bundle"),
        ("gymnasium:CartPole-v1", "Box of floats in one dimension, got Discrete(2)"),
        ("gymnasium:", "expected an environment that begins with one of"),
        ("tests.own_envs:mak", "'mak' in 'tests.own_envs', found none; did you mean 'make'?"),
        ("no_such_pkg:make", "expected a module 'no_such_pkg'"),
        ("nowhere", "gymnasium:ID, or module:attribute of your own, got 'nowhere'"),
        ("tests.own_envs:STEP", "expected a function (), got float '0.1'"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_written(
    env: str, words: str, bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, told = evaluate(capsys, bundle, "--env", env, "--episodes", "1", "--out", str(out))
    assert status == 1
    assert words in told["error"]
    assert len(told["error"].splitlines()) == 1
    assert not (out / "outcomes.jsonl").exists()


def test_kinds_and_rate_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = narrow_bundle(tmp_path / "slow", control_hz=3.0)
    _, told = evaluate(capsys, slow, "--env", NARROW, "--episodes", "1")
    assert (
        "expected actions of [2 delta, gripper] at 5 Hz, got [2 delta, gripper] at 3 Hz"
        in told["error"]
    )
    absolute = narrow_bundle(tmp_path / "absolute", kinds=("absolute", "absolute", "gripper"))
    _, told = evaluate(capsys, absolute, "--env", NARROW, "--episodes", "1")
    assert (
        "expected actions of [2 delta, gripper] at 5 Hz, got [2 absolute, gripper] at 5 Hz"
        in told["error"]
    )


def test_options_that_our_own_tasks_do_not_need_are_refused(
    bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = evaluate(capsys, bundle, "--camera", "front", "--max-steps", "3", "--episodes", "1")
    assert "expected no --camera, --max-steps for 'tabletop'" in told["error"]


def test_options_reach_every_episode(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--env",
        WIDE,
        "--episodes",
        "2",
        "--max-steps",
        "4",
        "--instruction",
        "stack the red cube",
    )
    status, told = evaluate(capsys, bundle, *words)
    assert (status, list(told["by_verb"])) == (0, ["stack"])
    assert cli.main(["eval", bundle, *words, "--workers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["outcomes"] == told["outcomes"]


def test_a_target_needs_one_to_start_from() -> None:
    robot = Robot(("absolute", "gripper"))
    assert robot.first(held=False).tolist() == [0.0, 1.0]
    assert Robot(robot.kinds, (0.3, 0.5)).first(held=True).tolist() == [0.3, 0.5]
    with pytest.raises(Exception, match="expected 'start_action' of the environment"):
        robot.first(held=True)
