"""SmolVLA in torch: what its masks hide, what every part of a plan keeps, and what it costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
import torch
from smolvla_policy import TINY, act, inputs, random_policy
from torch import Tensor, nn

from trimvla.policies.nn.flow import KnownRows
from trimvla.policies.sizes.roofline import DEVICES, floors_ms
from trimvla.policies.smolvla.checks import check
from trimvla.policies.smolvla.config import PRESETS
from trimvla.policies.smolvla.cost import cost
from trimvla.policies.smolvla.expert import as_layer
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.prefix import PrefixLayer
from trimvla.policies.smolvla.trimmed import trim
from trimvla.policies.smolvla.vision import patches_of, table_rows
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError

TOKENS = 16  # of one camera of TINY


@pytest.fixture(scope="module")
def policy() -> SmolVla:
    torch.set_num_threads(1)
    return random_policy()


def near(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding."""
    return torch.allclose(one, other, atol=2e-5, rtol=1e-4)


def acted(policy: SmolVla, plan: Plan, **changed: Tensor) -> Tensor:
    return act(trim(policy, plan), {**inputs(plan=plan), **changed})


# --- dense ---


def test_padding_of_the_prompt_changes_nothing(policy: SmolVla) -> None:
    given = inputs()
    length = int(given["last"]) + 1
    cut = {**given, "input_ids": given["input_ids"][:, :length]}
    other = {**given, "input_ids": given["input_ids"].clone()}
    other["input_ids"][:, length:] = 7
    assert near(act(policy, cut), act(policy, given))
    assert near(act(policy, other), act(policy, given))


def test_everything_else_of_an_observation_counts(policy: SmolVla) -> None:
    given = inputs()
    dense = act(policy, given)
    for name in ("images", "state", "input_ids", "noise"):
        moved = given[name].clone()
        moved.flatten()[0] += 1
        assert not torch.allclose(act(policy, {**given, name: moved}), dense, atol=1e-3), name


@torch.no_grad()
def test_no_row_but_its_own_sees_the_state_and_no_action_a_later_one(policy: SmolVla) -> None:
    given = inputs()
    visual = policy.vision(given["images"])
    length = given["last"] + 1

    def keys(state: Tensor) -> list[Tensor]:
        memory, _ = policy.remember(visual, given["input_ids"], length, state)
        return [layer.keys for layer in memory.layers]

    place = TINY.visual_tokens
    for one, other in zip(keys(given["state"]), keys(given["state"] + 1.0), strict=True):
        apart = (one - other).abs().amax(dim=(0, 1, 3)) > 1e-5
        assert apart.nonzero().flatten().tolist() == [place]
    later = given["noise"].clone()
    later[:, 3:] += 1.0
    moved = (act(policy, {**given, "noise": later}) - act(policy, given)).abs().amax(dim=(0, 2))
    assert bool((moved[:3] == 0).all())
    assert bool((moved[3:] > 1e-3).all())


def test_frozen_rows_stay_as_they_are_known(policy: SmolVla) -> None:
    given = inputs()
    length = given["last"] + 1
    known = torch.randn(1, TINY.horizon, TINY.padded_action_dim)
    weight = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0, 0.0])[None, :, None]
    with torch.no_grad():
        memory, _ = policy.remember(
            policy.vision(given["images"]), given["input_ids"], length, given["state"]
        )
        sample = policy.act(memory, length, given["noise"], KnownRows(known, weight))
    assert torch.allclose(sample[:, :2], known[:, :2], atol=1e-5)
    assert not torch.allclose(sample[:, 3:], act(policy, given)[:, 3:], atol=1e-3)


# --- plans ---


class Nothing(nn.Module):
    """In place of what writes to the stream."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.size)


def muted(policy: SmolVla, layers: tuple[int, ...], *, prefix_too: bool = False) -> SmolVla:
    """A copy in which these layers of the expert, and perhaps of the decoder, add nothing to the
    stream.
    """
    copied = random_policy()
    copied.load_state_dict(policy.state_dict())
    for index in layers:
        silence(copied.expert.layers[index], TINY.expert.width)
        if prefix_too and index < TINY.text.layers - 1:
            silence(copied.prefix.layers[index], TINY.text.width)
    return copied


def silence(layer: nn.Module, width: int) -> None:
    """What writes to the stream writes nothing."""
    layer.mlp = Nothing(width)
    layer.get_submodule("self_attn").o_proj = Nothing(width)


def test_the_empty_plan_is_the_dense_policy(policy: SmolVla) -> None:
    assert trim(policy, Plan(policy=TINY.fingerprint)) is policy


@pytest.mark.parametrize("kept", [(0, 2, 4), (1, 3), (0, 3)])
def test_a_dropped_expert_layer_is_as_if_it_added_nothing(
    policy: SmolVla, kept: tuple[int, ...]
) -> None:
    dropped = tuple(set(range(5)) - set(kept))
    expected = act(muted(policy, dropped), inputs())
    trimmed = trim(policy, Plan(expert_layers=kept))
    assert near(act(trimmed, inputs()), expected)
    assert len(trimmed.prefix.layers) == kept[-1] + 1  # nobody reads the others


@pytest.mark.parametrize("kept", [(0, 2, 4), (0, 1, 4), (1, 3)])
def test_a_dropped_pair_is_as_if_neither_added_anything_and_kinds_stay(
    policy: SmolVla, kept: tuple[int, ...]
) -> None:
    """(1, 3) would become a joined and a crossing layer if they were counted anew."""
    dropped = tuple(set(range(5)) - set(kept))
    both = muted(policy, dropped, prefix_too=True)
    trimmed = trim(policy, Plan(layers=kept))
    kinds = [as_layer(layer).joined for layer in trimmed.expert.layers]
    assert kinds == [index % 2 == 0 for index in kept]
    assert near(act(trimmed, inputs()), act(both, inputs()))


def test_dropped_channels_are_as_if_they_were_zero(policy: SmolVla) -> None:
    kept_prefix = list(range(0, 48, 2))
    kept_expert = list(range(10, 60))
    plan = Plan(channels=(mask(kept_prefix),) * 5, expert_channels=(mask(kept_expert),) * 5)
    expected = random_policy()
    expected.load_state_dict(policy.state_dict())
    with torch.no_grad():
        for part, kept in ((expected.prefix, kept_prefix), (expected.expert, kept_expert)):
            for layer in part.layers:
                if hasattr(layer, "mlp"):
                    down = layer.get_parameter("mlp.down_proj.weight")
                    gone = [i for i in range(down.shape[1]) if i not in kept]
                    down[:, gone] = 0.0
    assert near(acted(policy, plan), act(expected, inputs()))


@pytest.mark.parametrize("selector", ["relevance", "efficientvla", "fastv", "random", "uniform"])
@pytest.mark.parametrize("source", ["previous", "next", "expert"])
def test_keeping_every_token_changes_nothing(policy: SmolVla, selector: Any, source: Any) -> None:
    tokens = TokenPlan(keep=2 * TOKENS, after=2, selector=selector, source=source)
    assert near(acted(policy, Plan(tokens=tokens)), act(policy, inputs()))


@pytest.mark.parametrize("rows", ["text", "instruction", "last", "state"])
@torch.no_grad()
def test_kept_tokens_are_those_that_the_rows_look_at(policy: SmolVla, rows: Any) -> None:
    """Against the whole attention matrix of the second layer."""
    tokens = TokenPlan(keep=6, after=2, selector="relevance", rows=rows)
    trimmed = trim(policy, Plan(tokens=tokens))
    given = inputs()
    visual = policy.vision(given["images"])
    length = given["last"] + 1
    _, kept = trimmed.remember(visual, given["input_ids"], length, given["state"])
    prefix = policy.prefix
    start = prefix.rows(
        prefix.embed(visual, given["input_ids"], given["state"]), length, len(visual)
    )
    x, _ = prefix.layers[0](start)
    second = prefix.layers[1]
    assert isinstance(second, PrefixLayer)
    whole = second.attention_of(dataclasses.replace(start, x=x), slice(None))[0].mean(0)
    first = len(visual) + 1
    last = len(visual) + int(length)
    wanted = {
        "text": range(first, last + 1),
        "instruction": range(first, last),
        "last": [last],
        "state": [len(visual)],
    }[rows]
    scores = whole[list(wanted), : len(visual)].sum(0)
    assert kept is not None
    assert kept[0].tolist() == sorted(scores.topk(6).indices.tolist())


def test_a_schedule_of_every_step_is_the_dense_sampler_and_others_are_not(policy: SmolVla) -> None:
    dense = act(policy, inputs())
    assert near(acted(policy, Plan(recompute=tuple(range(10)))), dense)
    assert not torch.allclose(acted(policy, Plan(recompute=(0, 5))), dense, atol=1e-3)
    fewer = acted(policy, Plan(steps=5))
    assert near(fewer, act(random_steps(policy, 5), inputs()))


def random_steps(policy: SmolVla, steps: int) -> SmolVla:
    """The same weights in a policy whose config has so many steps."""
    flow = msgspec.structs.replace(TINY.flow, steps=steps)
    made = SmolVla.of(msgspec.structs.replace(TINY, flow=flow)).eval()
    made.load_state_dict(policy.state_dict())
    return made


# --- vision ---


def test_a_smaller_image_takes_every_other_row_of_the_table(policy: SmolVla) -> None:
    plan = Plan(vision=VisionPlan(image_size=16))
    trimmed = trim(policy, plan)
    assert trimmed.vision.encoder.positions == (
        0,
        2,
        4,
        6,
        16,
        18,
        20,
        22,
        32,
        34,
        36,
        38,
        48,
        50,
        52,
        54,
    )
    assert acted(policy, plan).shape == (1, 6, 12)
    assert trimmed.prefix.visual == 2 * 4


def test_shifted_positions_are_one_row_and_column_too_low() -> None:
    shifted = msgspec.structs.replace(TINY, patch_positions="shifted")
    rows = table_rows(8, shifted)
    assert rows is not None
    assert rows[:10] == (0, 0, 1, 2, 3, 4, 5, 6, 0, 0)
    assert rows[-1] == 6 * 8 + 6
    assert table_rows(8, TINY) is None


def test_kept_encoder_blocks(policy: SmolVla) -> None:
    plan = Plan(vision=VisionPlan(blocks=((0, 2),)))
    trimmed = trim(policy, plan).vision.encoder.layers
    assert list(trimmed) == [policy.vision.encoder.layers[0], policy.vision.encoder.layers[2]]


@torch.no_grad()
def test_patches_that_leave_at_the_end_are_tokens_that_never_came(policy: SmolVla) -> None:
    """Behind the last block but before it: the others saw them; in front of all: nobody did."""
    images = inputs()["images"]
    plan = Plan(vision=VisionPlan(patches=PatchPlan(keep=5, after=0, selector="random", seed=3)))
    trimmed = trim(policy, plan)
    assert trimmed.prefix.places is not None
    kept = trimmed.prefix.places[:5]
    encoder = policy.vision.encoder
    patches = encoder.embed(policy.vision.pixels(images))[:, list(patches_of(kept, 8, 2))]
    x = patches
    for layer in encoder.layers:
        x = layer(x)
    expected = policy.vision.connector(encoder.post_layernorm(x).reshape(2, 5, -1)).flatten(0, 1)
    assert near(trimmed.vision(images), expected)
    assert trimmed.prefix.places[5:] == tuple(TOKENS + place for place in kept)
    assert act(trimmed, inputs(plan=plan)).shape == (1, 6, 12)


@torch.no_grad()
def test_kept_tokens_are_named_in_the_image_where_patches_left_before(policy: SmolVla) -> None:
    plan = Plan(
        vision=VisionPlan(patches=PatchPlan(keep=9, after=1)),
        tokens=TokenPlan(keep=4, selector="relevance", quotas=(1, 3)),
    )
    trimmed = trim(policy, plan)
    given = inputs(plan=plan)
    _, kept = trimmed.remember(
        trimmed.vision(given["images"]), given["input_ids"], given["last"] + 1, given["state"]
    )
    assert kept is not None
    assert set(kept[0].tolist()) <= set(trimmed.prefix.places or ())
    assert (kept[0] < TOKENS).sum() == 1


def test_all_parts_together(policy: SmolVla) -> None:
    plan = Plan(
        layers=(0, 1, 3, 4),
        channels=(mask(range(24)),) * 4,
        expert_layers=(0, 3),
        expert_channels=(mask(range(32)), mask(range(5))),
        tokens=TokenPlan(keep=3, after=1, selector="relevance", rows="state", floor=1),
        vision=VisionPlan(image_size=24, blocks=((0, 1),), patches=PatchPlan(keep=6, after=1)),
        recompute=(0, 2),
        steps=4,
    )
    sample = acted(policy, plan)
    assert bool(torch.isfinite(sample).all())
    names = {name for name, _ in trim(policy, plan).named_parameters()}
    assert not any("prefix.layers.2.self_attn.q_proj" in name for name in names)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(layers=(0, 5)), "'layers' below 5, got 5"),
        (Plan(expert_layers=(0, 7)), "'expert_layers' below 5, got 7"),
        (Plan(guidance=1.5), r"nothing to trim by \['guidance'\]"),
        (Plan(channels=("1",)), "'channels' for 5 kept layers, got 1"),
        (Plan(channels=(mask([48]),) * 5), "'channels' below 48, got 48"),
        (Plan(expert_layers=(0, 1), expert_channels=("1",)), "'expert_channels' for 2 kept"),
        (Plan(expert_channels=(mask([64]),) * 5), "'expert_channels' below 64, got 64"),
        (Plan(recompute=(0, 10)), r"'recompute' below 10 \(the Euler steps\), got 10"),
        (Plan(steps=4, recompute=(0, 4)), "'recompute' below 4"),
        (Plan(policy="0123456789abcdef"), "got one for 0123456789abcdef"),
        (Plan(tokens=TokenPlan(keep=33, key=1)), "at most 32 visual tokens"),
        (Plan(tokens=TokenPlan(keep=8, after=5)), "the 5 that run, got 5"),
        (Plan(expert_layers=(0, 1), tokens=TokenPlan(keep=8, after=2)), "the 2 that run, got 2"),
        (Plan(tokens=TokenPlan(keep=8, after=4, source="next")), "'previous' or 'expert'.*'next'"),
        (Plan(tokens=TokenPlan(keep=8, after=1, source="expert")), "looks at the prefix alone"),
        (
            Plan(expert_layers=(0, 2), tokens=TokenPlan(keep=8, after=2, source="expert")),
            r"looks at the prefix alone.*\[0\]",
        ),
        (Plan(tokens=TokenPlan(keep=8, quotas=(8,))), "for 2 cameras, got 1"),
        (
            Plan(vision=VisionPlan(image_size=20)),
            "a multiple of 8 .*'image_size' of 'vision', got 20",
        ),
        (Plan(vision=VisionPlan(image_size=64)), "at most 32 pixels"),
        (Plan(vision=VisionPlan(blocks=((0,), (0,)))), "for 1 encoder, got 2"),
        (Plan(vision=VisionPlan(blocks=((0, 3),))), "'blocks' of 'vision' below 3, got 3"),
        (
            Plan(vision=VisionPlan(image_size=16, patches=PatchPlan(keep=5, after=1))),
            "at most 4, the visual tokens of an image of 16 pixels, for 'keep' of 'vision.patches'",
        ),
        (
            Plan(vision=VisionPlan(patches=PatchPlan(keep=5, after=3))),
            "'after' of 'vision.patches' below the 3 kept blocks, got 3",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(plan, TINY)


# --- cost ---

BASE = PRESETS["smolvla-base"]


def test_the_cost_of_the_published_size() -> None:
    dense = cost(BASE, Plan(), prompt=48)
    assert dense.flops / 1e9 == pytest.approx(828, rel=0.002)
    assert (dense.acting_parameters or 0) / 1e6 == pytest.approx(393, abs=1)
    assert dense.parameters / 1e6 == pytest.approx(450, abs=1)
    shares = {name: stage.flops / dense.flops for name, stage in dense.stages.items()}
    assert shares["vision"] == pytest.approx(0.78, abs=0.005)
    assert shares["language"] == pytest.approx(0.09, abs=0.005)
    assert shares["action"] == pytest.approx(0.13, abs=0.005)
    smaller = cost(BASE, Plan(vision=VisionPlan(image_size=256)), prompt=48)
    assert smaller.flops / 1e9 == pytest.approx(272, rel=0.005)
    trio = Plan(
        layers=tuple(range(12)),
        tokens=TokenPlan(keep=56, selector="uniform"),
        recompute=(0, 2, 4, 6, 8),
    )
    assert cost(BASE, trio, prompt=48).flops / 1e9 == pytest.approx(714, rel=0.003)
    for name, floors in (("orin", (15.2, 1.8, 9.6, 26.6)), ("thor", (2.5, 1.1, 7.2, 10.8))):
        assert tuple(floors_ms(dense, DEVICES[name]).values()) == pytest.approx(floors, abs=0.06)
    fewer = [cost(BASE, Plan(), cameras=count).flops for count in (1, 2, 3)]
    assert fewer == sorted(fewer)
    with pytest.raises(ConfigError, match="1 to 3 cameras for 'smolvla-base', got 4"):
        cost(BASE, Plan(), cameras=4)
    with pytest.raises(ConfigError, match="prompt of 1 to 48 ids, got 49"):
        cost(BASE, Plan(), prompt=49)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(layers=(0, 1, 3), channels=(mask(range(9)),) * 3),
        Plan(expert_layers=(1, 3), expert_channels=(mask(range(7)),) * 2),
        Plan(vision=VisionPlan(blocks=((1,),))),
    ],
)
def test_parameters_are_those_of_the_policy(policy: SmolVla, plan: Plan) -> None:
    stages = cost(TINY, plan).stages.values()
    held = {id(weight): weight.numel() for weight in trim(policy, plan).parameters()}
    assert sum(stage.parameters for stage in stages) == sum(held.values())


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(layers=(0, 1, 3), recompute=(0, 3)),
        Plan(tokens=TokenPlan(keep=5, selector="uniform"), steps=3),
        Plan(vision=VisionPlan(image_size=24, patches=PatchPlan(keep=4, after=1))),
    ],
)
def test_operations_are_those_that_torch_counts(policy: SmolVla, plan: Plan) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    trimmed = trim(policy, plan)
    given = inputs(plan=plan)
    with FlopCounterMode(display=False) as counter:
        act(trimmed, given)
    expected = cost(TINY, plan, prompt=TINY.prompt.longest).flops
    assert counter.get_total_flops() == expected
