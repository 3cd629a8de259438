"""Patches that leave inside CogACT's image encoders: policy, cost, sizes, and errors."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_policy import TINY, inputs, random_policy
from trimvla.policies.cogact.stages import tensor_specs
from trimvla.policies.sizes.cost import shape_of, stage_costs
from trimvla.policies.sizes.memory import plan_memory
from trimvla.policies.sizes.roofline import same_plan
from trimvla.policies.trimming.places import grid, nearest
from trimvla.policies.trimming.trimmed import trim
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError

UNIFORM = TokenPlan(keep=4, after=1, selector="uniform")


def plan_of(keep: int, after: int = 0, tokens: TokenPlan | None = None) -> Plan:
    """So many of the sixteen patches."""
    return Plan(vision=VisionPlan(patches=PatchPlan(keep=keep, after=after)), tokens=tokens)


def test_every_patch_kept_is_the_dense_policy() -> None:
    policy = random_policy()
    given = inputs()
    assert torch.equal(trim(policy, plan_of(16))(*given), policy(*given))


def test_the_decoder_sees_what_is_left_at_its_old_positions() -> None:
    policy = random_policy()
    image, ids, last, _ = inputs()
    trimmed = trim(policy, plan_of(9))
    visual = trimmed.vision(image)
    x = policy.language.embed(policy.vision(image), ids)
    places = torch.tensor([0, *(1 + i for i in grid(16, 9)), *range(17, x.shape[1])])
    cos, sin, _ = policy.language.context(x)
    ours = trimmed.language.context(trimmed.language.embed(visual, ids))
    assert visual.shape == (1, 9, 32)
    assert torch.equal(ours[0], cos[places]) and torch.equal(ours[1], sin[places])
    assert trimmed.language.cognition(visual, ids, last).shape == (1, 32)


def test_kept_tokens_are_places_in_the_whole_image() -> None:
    policy = random_policy()
    image, ids, last, _ = inputs()
    trimmed = trim(policy, plan_of(9, tokens=UNIFORM))
    decoder = trimmed.language
    assert isinstance(decoder, TrimmedDecoder)
    _, kept = decoder.cognition_and_kept(trimmed.vision(image), ids, last)
    assert set(kept[0].tolist()) <= set(grid(16, 9))
    assert decoder.in_image(decoder.among_seen(kept)).tolist() == kept.tolist()
    assert decoder.in_image(torch.tensor([nearest(grid(16, 4), grid(16, 9), 16)])).equal(kept)


def test_cost_counts_what_torch_multiplies() -> None:
    plan = plan_of(9, tokens=UNIFORM)
    given = inputs(length=12)
    policy = trim(random_policy(), plan)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy(*given)
    costs = stage_costs(TINY, shape_of(TINY, plan), 12)
    assert sum(cost.flops for cost in costs.values()) == counter.get_total_flops()


def test_specs_memory_and_roofline_follow() -> None:
    plan = plan_of(4)
    assert tensor_specs(TINY, plan)["visual"].shape == (1, 4, 32)
    fewer = plan_memory(TINY, shape_of(TINY, plan), "float32").activations
    dense = plan_memory(TINY, shape_of(TINY, Plan()), "float32").activations
    assert fewer["language"] < dense["language"]
    double = msgspec.structs.replace(TINY, name="twice")
    scaled = same_plan(TINY, plan, double)
    assert scaled.patches is not None and scaled.patches.keep == 4


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(17), "'keep' of 'vision.patches', got 17"),
        (plan_of(4, after=1), "'after' of 'vision.patches'"),
        (plan_of(3, tokens=UNIFORM), "at most 3 visual tokens"),
        (Plan(vision=VisionPlan(image_size=16)), "vision.image_size"),
    ],
)
def test_a_plan_that_does_not_fit(plan: Plan, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        trim(random_policy(), plan)
