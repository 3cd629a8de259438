"""The GPU benchmark: fused and compiled policies are the policy itself, and the command runs from
start to end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_policy import TINY, random_policy

from trimvla.launch import cli
from trimvla.launch.bench import device_policy as gpu_policy
from trimvla.launch.bench.device_policy import EAGER, DevicePolicy, device_inputs
from trimvla.launch.bench.gpu_subjects import FIRST_ROUNDS
from trimvla.launch.verbs import gpu_bench
from trimvla.policies.cogact.compiled import compile_blocks
from trimvla.policies.cogact.fused import FusedAttention, fuse
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.stages import stages
from trimvla.policies.nn.llama import DecoderAttention, DecoderLayer
from trimvla.policies.sizes.cost import shape_of
from trimvla.policies.trimming.plan_by_size import plan_by_sizes
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = Path(torch.__file__).parent.parent
TRIMMED = plan_by_sizes(TINY, layers=3, tokens=TokenPlan(keep=6), mlp_keep=0.5, cache_interval=2)


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
    torch.testing.assert_close(fused(*given), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy(*given), expected, atol=1e-5, rtol=0)


def test_a_policy_and_its_fused_twins_share_their_memory() -> None:
    policy = random_policy(TINY)
    one, two = (first_attention(fuse(policy)) for _ in range(2))
    queries = first_attention(policy).q_proj.weight
    assert isinstance(one, FusedAttention)
    assert isinstance(two, FusedAttention)
    assert one.qkv.data_ptr() == two.qkv.data_ptr() == queries.data_ptr()


def first_attention(policy: CogAct) -> DecoderAttention:
    layer = policy.language.layers[0]
    assert isinstance(layer, DecoderLayer)
    return layer.self_attn


@torch.no_grad()
def test_compiled_blocks_are_the_same_policy(inputs: dict[str, torch.Tensor]) -> None:
    policy = random_policy(TINY)
    given = [inputs[name] for name in ("image", "input_ids", "last", "noise")]
    torch.testing.assert_close(
        compile_blocks(fuse(policy), backend="aot_eager")(*given), policy(*given), atol=1e-4, rtol=0
    )


def test_a_plan_by_sizes_has_these_counts() -> None:
    shape = shape_of(TINY, TRIMMED)
    assert shape.mlp == (TINY.language.mlp_hidden // 2,) * 3
    assert (shape.full_steps, shape.steps) == (1, 2)
    assert shape.tokens is not None
    assert shape.tokens.keep == 6


def test_half_precision_runs_and_samples_in_single(inputs: dict[str, torch.Tensor]) -> None:
    actions = DevicePolicy(
        trim(random_policy(TINY).bfloat16().requires_grad_(False), TRIMMED), EAGER, inputs
    ).actions()
    assert actions.dtype == torch.float32
    assert torch.isfinite(actions).all()


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    # features are reused for five
    steps = msgspec.structs.replace(TINY.diffusion, inference_steps=5)
    monkeypatch.setattr(
        gpu_bench, "find_preset", lambda name: msgspec.structs.replace(TINY, diffusion=steps)
    )


@pytest.mark.usefixtures("tiny_preset")
def test_the_command_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--device cpu --rounds 2 --warmup 0 --layers 3 --tokens 6 --seconds 0.001 --json"
    assert cli.main(["gpu-bench", *words.split(), "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(row["name"], row["part"]): row for row in result["rows"]}
    trimmed, dense = (rows[f"{name}@torch-eager", "total"] for name in ("L3 T6", "dense"))
    assert trimmed["parameters"] < dense["parameters"]
    assert trimmed["floor_ms"] < dense["floor_ms"]
    assert trimmed["ratio_to_dense"] > 0
    assert sum("left out" in note for note in result["notes"]) == 2  # the compiled ones: no time
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-cpu.json", "gpu-cpu.png"]


ALLOWED = (
    *(
        "torch",
        "torchgen",
        "functorch",
        "numpy",
        "numpy.libs",
        "msgspec",
        "sympy",
        "mpmath",
        "networkx",
        "jinja2",
    ),
    *("markupsafe", "filelock", "fsspec", "typing_extensions.py", "optree", "triton"),
)
"""Torch with what it depends on, NumPy, msgspec."""


@pytest.mark.slow
def test_it_runs_where_nothing_is_installed_but_torch(tmp_path: Path) -> None:
    site = tmp_path / "site"
    python = tmp_path / "python"
    site.mkdir()
    for name in ALLOWED:
        if (INSTALLED / name).exists():
            (site / name).symlink_to(INSTALLED / name)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    words = "--preset tabletop --device cpu --rounds 1 --layers 14 --tokens 56 --seconds 0.001"
    done = subprocess.run(
        [ROOT / "launch" / "gpu_bench.sh", tmp_path / "out", *words.split()],
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": str(python),
            "PYTHONPATH": str(site),
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "L14 T56@torch-eager" in done.stdout
    # no matplotlib, no image
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu-cpu.json"]


@pytest.mark.usefixtures("tiny_preset")
def test_what_fails_is_noted_and_what_was_measured_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails is one line; a run that is cut short leaves whole rows of those who
    were ready.
    """

    class Cut(BaseException):
        pass

    def breaks(policy: object) -> None:
        raise AssertionError("no compiler\nand a long trace")

    monkeypatch.setattr(gpu_policy, "compile_blocks", breaks)
    monkeypatch.setattr(gpu_bench, "add_bundles", lambda bench, write: (_ for _ in ()).throw(Cut))
    args = gpu_bench.Args(
        out=tmp_path, device="cpu", seconds=1e6, layers=(3,), tokens=(6,), rounds=1
    )
    with pytest.raises(Cut):
        gpu_bench.run(args)
    result = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert {row["subject"] for row in result["rows"]} == {"dense@torch-eager", "L3 T6@torch-eager"}
    assert result["rounds"] == FIRST_ROUNDS


@pytest.mark.parametrize("plan", [Plan(), TRIMMED], ids=["dense", "trimmed"])
def test_no_stage_reads_a_value_on_its_way(plan: Plan, inputs: dict[str, torch.Tensor]) -> None:
    """Tensors without memory run through, so a CUDA graph can capture it: nothing waits for the
    device.
    """
    with torch.device("meta"):
        policy = CogAct(TINY).bfloat16().requires_grad_(False)
    on_meta = {name: tensor.to("meta") for name, tensor in inputs.items()}
    tensors = on_meta | {}
    for stage in stages(TINY, plan):
        result = stage.module(fuse(trim(policy, plan)))(*(tensors[name] for name in stage.inputs))
        tensors |= dict(
            zip(stage.outputs, result if isinstance(result, tuple) else (result,), strict=True)
        )
    assert tensors["actions"].shape == (1, TINY.head.horizon, TINY.head.action_dim)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu-bench"]) != 0
    assert "--device cpu" in capsys.readouterr().err
