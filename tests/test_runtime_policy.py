"""A bundle acts: deterministic, in the robot's units, without torch, and with clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import DIM, HORIZON, write_bundle

from trimvla.runtime.errors import (
    BackendError,
    BundleError,
    ObservationError,
    PromptError,
    SpecError,
)
from trimvla.runtime.inference.policy import Policy

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
IMPORT_BUDGET_S = 0.5
FOREIGN = "torch onnx mujoco gymnasium tyro rich"  # what the runtime never needs
IMPORT = """
import importlib, sys, time
# of the processor: what else the machine does at the time is not counted
start = time.process_time()
importlib.import_module(sys.argv[1])
seconds = time.process_time() - start
heavy = set(sys.argv[2].split()) & set(sys.modules)
assert not heavy, heavy
print(seconds)
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(write_bundle(tmp_path_factory.mktemp("bundle")), threads=1)


def test_actions_are_in_the_robots_units(policy: Policy) -> None:
    result = policy.infer(PICTURE, "pick up the red cube")
    assert result.normalized.shape == result.actions.shape == (HORIZON, DIM)
    assert np.abs(result.normalized).max() <= 1.0
    np.testing.assert_allclose(result.actions[:, :6], 0.05 * result.normalized[:, :6], atol=1e-8)
    np.testing.assert_array_equal(result.actions[:, 6], (result.sample[:, 6] >= 0.5).astype(float))


def test_every_part_is_timed(policy: Policy) -> None:
    spent = policy.infer(PICTURE, "pick up the red cube").milliseconds
    assert list(spent) == ["preprocess", "vision", "language", "action", "total"]
    assert 0 < sum(list(spent.values())[:-1]) <= spent["total"]


def test_same_observation_and_noise_same_actions(policy: Policy) -> None:
    first, again, other = (
        policy.infer(PICTURE, "pick up the cube", seed=seed) for seed in ((1, 7), (1, 7), (1, 8))
    )
    np.testing.assert_array_equal(first.sample, again.sample)
    assert not np.array_equal(first.sample, other.sample)
    noise = policy.draw_noise((1, 7))
    np.testing.assert_array_equal(
        policy.infer(PICTURE, "pick up the cube", noise=noise).sample, first.sample
    )


@pytest.mark.parametrize("change", ["picture", "instruction", "noise"])
def test_every_input_matters(policy: Policy, change: str) -> None:
    before = policy.infer(PICTURE, "pick up the red cube").sample
    after = policy.infer(
        PICTURE[::-1].copy() if change == "picture" else PICTURE,
        "pick up the blue cube" if change == "instruction" else "pick up the red cube",
        seed=1 if change == "noise" else 0,
    ).sample
    assert not np.array_equal(before, after)


def test_padding_changes_nothing(policy: Policy, tmp_path: Path) -> None:
    """The same instruction in its own bucket and in a larger one."""
    prompter = policy._inputs._prompter  # what goes into the language stage
    assert prompter is not None
    ids, last = prompter.ids("pick up the red cube")
    visual = np.ones((1, 4, 6), np.float32)
    longer = np.pad(ids, ((0, 0), (0, 5)))
    short, long = (
        policy.runners["language"].run({"visual": visual, "input_ids": tokens, "last": last})[
            "cognition"
        ]
        for tokens in (ids, longer)
    )
    np.testing.assert_array_equal(short, long)


def test_refusals_name_the_field(policy: Policy) -> None:
    with pytest.raises(
        ObservationError, match=r"expected uint8\[\?, \?, 3\] for 'image', got float64\[20, 30, 3\]"
    ):
        policy.infer(PICTURE.astype(np.float64), "pick up the cube")
    with pytest.raises(PromptError, match=r"expected text for 'instruction', got str\d+\[1\]"):
        policy.infer(PICTURE, np.array(["pick up the cube"]))  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="expected an instruction"):
        policy.infer(PICTURE, "")
    with pytest.raises(PromptError, match="expected at most 16 tokens"):
        policy.infer(PICTURE, "pick up the red cube " * 9)
    with pytest.raises(
        SpecError, match=r"expected float32\[16, 7\] for 'noise', got float32\[15, 7\]"
    ):
        policy.infer(PICTURE, "pick up the cube", noise=np.zeros((15, 7), np.float32))


def test_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    policy = Policy.load(write_bundle(tmp_path, gain=float("inf")), threads=1)
    with pytest.raises(BackendError, match="expected finite numbers for 'actions'"):
        policy.infer(PICTURE, "pick up the cube")


def test_a_bundle_that_is_not_there() -> None:
    with pytest.raises(BundleError, match="got 'no-such-bundle'"):
        Policy.load("no-such-bundle")


def test_says_what_really_runs(policy: Policy) -> None:
    assert {row["provider"] for row in policy.describe().values()} == {"CPUExecutionProvider"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("trimvla.runtime.inference.policy", f"{FOREIGN} onnxruntime cv2 zmq tokenizers PIL"),
        ("trimvla.runtime.control.process", FOREIGN),
    ],
)
def test_import_is_quick_and_light(module: str, heavy: str) -> None:
    """The best of three: a busy machine may delay one."""
    assert min(seconds_to_import(module, heavy) for _ in range(3)) < IMPORT_BUDGET_S


def seconds_to_import(module: str, heavy: str) -> float:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT, module, heavy], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout)
