"""SmolVLA's stages: one after the other they are the policy."""

from __future__ import annotations

import pytest
import torch
from smolvla_policy import TINY, act, inputs, random_policy

from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.stages import example_inputs, stages, tensor_specs
from trimvla.policies.smolvla.trimmed import trim
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


@pytest.mark.parametrize("plan", [Plan(), SHORT, TRIMMED, STATE])
@torch.no_grad()
def test_stages_one_after_the_other_are_the_policy(policy: SmolVla, plan: Plan) -> None:
    """Zeros behind a short prompt's keys, two groups of keys and pieces change nothing."""
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
