"""SmolVLA's stages as graphs: the same numbers as torch, and operators that TensorRT 10.3 takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from smolvla_policy import TINY, act, inputs, random_policy

from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.tensorrt.operators import check_operators
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.stages import example_inputs, memory_names, stages, tensor_specs
from trimvla.policies.smolvla.trimmed import trim
from trimvla.runtime.backends.runner import create
from trimvla.runtime.bundle.manifest_types import StageSpec
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan

SHORT = Plan(steps=2)
TRIMMED = Plan(
    layers=(0, 1, 2, 4),
    channels=(mask(range(40)),) * 4,
    expert_layers=(0, 1, 4),
    expert_channels=(mask(range(50)),) * 3,
    tokens=TokenPlan(keep=7, after=2, selector="efficientvla", key=2, source="expert"),
    vision=VisionPlan(image_size=24, blocks=((0, 2),), patches=PatchPlan(keep=6, after=1)),
    steps=3,
    recompute=(0, 2),
)
STATE = Plan(
    tokens=TokenPlan(keep=9, selector="relevance", rows="state", source="next", floor=2), steps=1
)


@pytest.fixture(scope="module")
def policy() -> SmolVla:
    torch.set_num_threads(1)
    return random_policy()


def through_onnx(
    policy: SmolVla, plan: Plan, bucket: int, directory: Path, *, guided: bool = False
) -> dict[str, float]:
    """Largest difference of every output, each stage fed with torch's own inputs."""
    trimmed = trim(policy, plan)
    generator = torch.Generator().manual_seed(1)
    tensors = example_inputs(TINY, plan, bucket, generator)
    weight = torch.tensor([1.0, 0.7, 0.3, 0.0, 0.0, 0.0])[None, :, None]
    tensors |= {"known": torch.randn(tensors["noise"].shape, generator=generator), "weight": weight}
    specs = tensor_specs(TINY, plan)
    apart: dict[str, float] = {}
    for stage in stages(TINY, plan, guided):
        path = directory / f"{stage.name}.onnx"
        if not path.exists():
            export_stage(trimmed, stage, path)
            check_operators(path)
        given = {name: tensors[name] for name in stage.inputs}
        with torch.no_grad():
            made = stage.module(trimmed)(*given.values())
        outputs = made if isinstance(made, tuple) else (made,)
        tensors |= dict(zip(stage.outputs, outputs, strict=True))
        spec = StageSpec(
            path.name,
            tuple(specs[name] for name in stage.inputs),
            tuple(specs[name] for name in stage.outputs),
        )
        runner = create("onnxruntime", path, spec, threads=1)
        got = runner.run({name: tensor.numpy() for name, tensor in given.items()})
        runner.close()
        for name, expected in zip(stage.outputs, outputs, strict=True):
            apart[name] = float(np.abs(got[name] - expected.numpy()).max())
    return apart


@pytest.mark.slow
def test_the_dense_stages_and_the_guided_one(policy: SmolVla, tmp_path: Path) -> None:
    for bucket in TINY.prompt.buckets:
        apart = through_onnx(policy, SHORT, bucket, tmp_path, guided=True)
        assert set(apart) == {"visual", "keys", "values", "actions", "guided_actions"}
        assert max(apart.values()) < 1e-4
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.onnx")}
    assert sizes["action_guided"] < 0.5 * sizes["action"]  # its weights are in the other's file


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [pytest.param(TRIMMED, id="trimmed"), pytest.param(STATE, id="state")]
)
def test_the_stages_under_a_plan(policy: SmolVla, tmp_path: Path, plan: Plan) -> None:
    apart = through_onnx(policy, plan, TINY.prompt.longest, tmp_path)
    assert set(memory_names(TINY, plan)) < set(apart)
    assert apart.pop("kept") == 0.0
    assert max(apart.values()) < 1e-4


@pytest.mark.parametrize("plan", [Plan(), SHORT, TRIMMED, STATE])
@torch.no_grad()
def test_stages_one_after_the_other_are_the_policy(policy: SmolVla, plan: Plan) -> None:
    """What fills up a short prompt's keys, two groups of keys and pieces change nothing."""
    trimmed = trim(policy, plan)
    expected = act(trimmed, inputs(plan=plan))
    short = example_inputs(TINY, plan, TINY.prompt.buckets[0], torch.Generator().manual_seed(3))
    for given, wanted in (
        (inputs(plan=plan), expected),
        (short, act(trimmed, short)),
    ):
        tensors = dict(given)
        for stage in stages(TINY, plan):
            made = stage.module(trimmed)(*(tensors[name] for name in stage.inputs))
            outputs = made if isinstance(made, tuple) else (made,)
            for name, tensor in zip(stage.outputs, outputs, strict=True):
                assert tuple(tensor.shape) == tensor_specs(TINY, plan)[name].shape
                tensors[name] = tensor
        assert torch.allclose(tensors["actions"], wanted, atol=2e-5)
