"""The GPU benchmark: fused and compiled policies are the policy itself, and the command runs from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_policy import TINY, random_policy

from trimvla.export.gpu_policy import EAGER, DevicePolicy, device_inputs, plan_by_counts
from trimvla.launch import cli
from trimvla.policies.compiled import compile_blocks
from trimvla.policies.cost import shape_of
from trimvla.policies.fused import fuse
from trimvla.policies.trimmed import trim
from trimvla.runtime.plan import Plan

TRIMMED = plan_by_counts(TINY, layers=3, tokens=6, mlp_keep=0.5, interval=2)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return device_inputs(TINY, "cpu")


@pytest.mark.parametrize("plan", [Plan(), TRIMMED], ids=["dense", "trimmed"])
@torch.no_grad()
def test_fused_projections_are_the_same_policy(plan: Plan, inputs: dict[str, torch.Tensor]) -> None:
    policy = trim(random_policy(TINY), plan)
    given = [inputs[name] for name in ("image", "input_ids", "last", "noise")]
    expected = policy(*given)
    fused = fuse(policy)
    torch.testing.assert_close(fused(*given), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(policy(*given), expected, atol=1e-6, rtol=0)


def test_a_policy_and_its_fused_twins_share_their_memory() -> None:
    policy = random_policy(TINY)
    one, two = (fuse(policy).language.layers[0].self_attn.qkv for _ in range(2))
    queries = policy.language.layers[0].self_attn.q_proj.weight
    assert one.data_ptr() == two.data_ptr() == queries.data_ptr()


@torch.no_grad()
def test_compiled_blocks_are_the_same_policy(inputs: dict[str, torch.Tensor]) -> None:
    policy = random_policy(TINY)
    given = [inputs[name] for name in ("image", "input_ids", "last", "noise")]
    torch.testing.assert_close(
        compile_blocks(fuse(policy), backend="aot_eager")(*given), policy(*given), atol=1e-4, rtol=0
    )


def test_a_plan_by_counts_has_these_counts() -> None:
    shape = shape_of(TINY, TRIMMED)
    assert shape.mlp == (TINY.language.mlp_hidden // 2,) * 3
    assert (shape.full_steps, shape.steps) == (1, 2)
    assert shape.tokens is not None
    assert shape.tokens.keep == 6


def test_half_precision_runs_and_samples_in_single(inputs: dict[str, torch.Tensor]) -> None:
    actions = DevicePolicy(random_policy(TINY).bfloat16().requires_grad_(False), TRIMMED, EAGER, inputs).actions()
    assert actions.dtype == torch.float32
    assert torch.isfinite(actions).all()


def test_the_command_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--preset tabletop --device cpu --rounds 2 --warmup 0 --layers 14 --tokens 56 --seconds 0.001 --json"
    assert cli.main(["gpu-bench", *words.split(), "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(row["name"], row["part"]): row for row in result["rows"]}
    trimmed, dense = (rows[f"{name}@torch-eager", "total"] for name in ("L14 T56", "dense"))
    assert trimmed["parameters"] < dense["parameters"]
    assert trimmed["floor_ms"] < dense["floor_ms"]
    assert trimmed["ratio_to_dense"] > 0
    assert sum("left out" in note for note in result["notes"]) == 2  # the compiled ones: no time
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-cpu.json", "gpu-cpu.png"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu-bench"]) != 0
    assert "--device cpu" in capsys.readouterr().err
