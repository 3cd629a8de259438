"""The modules: sizes, exactness of the shortcuts, and starting weights."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from tiny_policy import TINY, inputs, random_policy

from trimvla.policies.cogact.initialise import initialise, sincos_grid
from trimvla.policies.cogact.layout import build_meta, official_parameters
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.attention import attention
from trimvla.policies.nn.diffusion import (
    alphas_cumprod,
    ddim_sample,
    ddim_steps,
    guided,
    q_sample,
    timesteps,
)
from trimvla.policies.nn.llama import rotary, rotate
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trips_through_json(name):
    data = msgspec.json.decode(msgspec.json.encode(PRESETS[name].to_dict()))
    assert PolicyConfig.from_dict(data) == PRESETS[name]


def test_config_rejects_what_it_does_not_know():
    data = TINY.to_dict()
    with pytest.raises(ConfigError, match=r"colour.*\$\.language"):
        PolicyConfig.from_dict({**data, "language": {**data["language"], "colour": 1}})
    with pytest.raises(ConfigError, match=r"str.*\$\.language\.width"):
        PolicyConfig.from_dict({**data, "language": {**data["language"], "width": "wide"}})
    with pytest.raises(ConfigError, match="multiple of heads"):
        PolicyConfig.from_dict({**data, "language": {**data["language"], "heads": 5}})


@pytest.mark.parametrize(
    ("size", "head", "total"), [("small", 12.4, 7.55), ("base", 88.9, 7.63), ("large", 307.5, 7.85)]
)
def test_full_size_presets_cost_no_memory(size, head, total):
    cfg = PRESETS[f"cogact-{size}"]
    policy = build_meta(cfg)
    assert all(parameter.is_meta for parameter in policy.parameters())
    assert sum(p.numel() for p in policy.head.parameters()) / 1e6 == pytest.approx(head, rel=7e-3)
    assert official_parameters(cfg) / 1e9 == pytest.approx(total, abs=0.005)


def test_initialise_works_on_meta_and_starts_at_zero_noise():
    initialise(build_meta(TINY))
    policy = initialise(CogAct(TINY))
    x = torch.randn(2, TINY.head.horizon, TINY.head.action_dim)
    assert (
        policy.head(x, torch.tensor([3, 90]), torch.randn(2, TINY.language.width)).abs().max() == 0
    )
    assert torch.isfinite(torch.cat([p.flatten() for p in policy.parameters()])).all()


def test_sincos_grid_names_every_place():
    grid = sincos_grid(16, 32)
    assert grid.shape == (16, 32)
    assert torch.cdist(grid, grid).add(torch.eye(16)).min() > 0.1


def test_attention_equals_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, mask), expected, atol=1e-6, rtol=0)


def test_rotation_depends_on_distance_only():
    q = torch.randn(1, 8)
    k = torch.randn(1, 8)
    cos, sin = rotary(torch.arange(20), 8, 10000.0)

    def score(i, j):
        return (rotate(q, cos[i], sin[i]) * rotate(k, cos[j], sin[j])).sum()

    torch.testing.assert_close(score(3, 1), score(17, 15), atol=1e-5, rtol=0)


def test_last_layer_for_one_token_equals_the_full_pass():
    policy = random_policy()
    image, ids, last, _ = inputs()
    with torch.no_grad():
        visual = policy.vision(image)
        full = policy.language.norm(
            policy.language.hidden_states(policy.language.embed(visual, ids))[-1]
        )
        cognition = policy.language.cognition(visual, ids, last)
    torch.testing.assert_close(cognition, full[:, TINY.patches + int(last)], atol=1e-6, rtol=0)


def test_padding_and_batch_change_nothing():
    policy = random_policy()
    image, ids, last, noise = inputs()
    longer = torch.nn.functional.pad(ids, (0, 4), value=TINY.prompt.pad_id)
    both = torch.cat([longer, torch.randint(4, 64, longer.shape)])
    with torch.no_grad():
        alone = policy(image, ids[:, : int(last) + 1], last, noise)
        padded = policy(image, longer, last, noise)
        batch = policy(
            image.repeat(2, 1, 1, 1), both, torch.tensor([int(last), 15]), noise.repeat(2, 1, 1)
        )
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch[:1], alone, atol=1e-5, rtol=0)
    assert (batch[1] - alone[0]).abs().max() > 1e-3


def test_training_step_reaches_every_parameter():
    policy = random_policy().train()
    image, ids, last, noise = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cognition = policy.language.cognition(policy.vision(image), ids, last)
        z = torch.cat([cognition, policy.head.uncondition])
        policy.head(noise.repeat(2, 1, 1), torch.tensor([10, 60]), z).square().mean().backward()
    assert [name for name, p in policy.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("steps", "visited"), [(10, list(range(90, -1, -10))), (5, [80, 60, 40, 20, 0]), (1, [50])]
)
def test_ddim_visits_the_published_timesteps(steps, visited):
    assert timesteps(100, steps) == visited


def test_ddim_refuses_a_number_of_steps_without_a_stride():
    with pytest.raises(ConfigError, match="60 of 100"):
        timesteps(100, 60)


def test_ddim_recovers_clean_actions_from_a_perfect_network():
    clean = torch.randn(1, 4, 7)
    noise = torch.randn(1, 4, 7)
    start = ddim_steps(100, 10)[0]
    x = q_sample(clean, torch.tensor([start.t]), noise, 100)
    for step in ddim_steps(100, 10):
        epsilon = (x - math.sqrt(step.kept) * clean) / math.sqrt(1 - step.kept)
        x, x0 = step.apply(x, epsilon)
        torch.testing.assert_close(x0, clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(x, clean, atol=1e-4, rtol=0)


def test_schedule_is_the_squared_cosine():
    def curve(fraction):
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = alphas_cumprod(100)
    assert kept[49] == pytest.approx(curve(0.5) / curve(0.0), rel=1e-12)
    assert 0 < kept[-1] < kept[0] < 1


def test_guidance_is_the_published_combination():
    net = random_policy().head
    z = torch.randn(1, 32)
    x = torch.randn(1, 16, 7)
    t = torch.tensor([40])
    with torch.no_grad():
        conditional = net(x, t, z)
        unconditional = net(x, t, net.uncondition)
        combined = guided(net, z, 2.5)(x, 40)
        off = guided(net, z, 1.0)(x, 40)
    torch.testing.assert_close(
        combined, unconditional + 2.5 * (conditional - unconditional), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(off, conditional, atol=1e-6, rtol=0)


def test_sampling_is_repeatable():
    net = random_policy().head
    z = torch.randn(1, 32)
    noise = torch.randn(1, 16, 7)
    with torch.no_grad():
        first, second = (
            ddim_sample(net, z, noise, train_steps=100, steps=5, guidance=1.5) for _ in range(2)
        )
    assert torch.equal(first, second)
