"""The flow sampler in both directions of time, known rows, and what steps reuse."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from trimvla.policies.nn.flow import (
    KnownRows,
    StepCache,
    flow_sample,
    flow_steps,
    flow_trajectory,
    time_embedding,
)
from trimvla.policies.nn.grouped import GroupedAttention, grouped_attention
from trimvla.runtime.errors import ConfigError

NOISE = torch.tensor([[[1.0, -2.0], [0.5, 3.0], [2.0, 2.0]]])
ACTIONS = torch.tensor([[[0.3, 0.1], [-1.0, 0.7], [0.0, 0.25]]])


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("noise_at", [0, 1])
def test_a_straight_flow_ends_at_its_actions(steps: int, noise_at: Literal[0, 1]) -> None:
    sign = 1.0 if noise_at else -1.0
    sample = flow_sample(
        lambda _x, _step: sign * (NOISE - ACTIONS), NOISE, flow_steps(steps, noise_at)
    )
    assert torch.allclose(sample, ACTIONS, atol=1e-6)


def test_times_are_float32_of_the_exact_ones_and_not_a_sum_of_steps() -> None:
    times = [step.t for step in flow_steps(10)]
    assert times == [torch.tensor(1.0 + k * -0.1).item() for k in range(10)]
    summed = torch.ones(())
    for _ in range(9):
        summed = summed - torch.tensor(0.1)
    assert times[9] != summed.item()
    assert [step.t for step in flow_steps(4, 0)] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("noise_at", [0, 1])
def test_frozen_rows_walk_straight_to_what_is_known_whatever_the_velocity(
    noise_at: Literal[0, 1],
) -> None:
    """Row 0 is frozen, row 1 half guided, row 2 free."""
    weight = torch.tensor([1.0, 0.5, 0.0])[None, :, None]

    def velocity(x: Tensor, step: int) -> Tensor:
        return torch.sin(3.0 * x + step)

    steps = flow_steps(5, noise_at)
    guided = list(flow_trajectory(velocity, NOISE, steps, KnownRows(ACTIONS, weight)))
    free = list(flow_trajectory(velocity, NOISE, steps))
    for index, x in enumerate(guided):
        share = (index + 1) / 5
        expected = (1 - share) * NOISE[:, 0] + share * ACTIONS[:, 0]
        assert torch.allclose(x[:, 0], expected, atol=1e-6)
        assert torch.equal(x[:, 2], free[index][:, 2])
    nearer = (guided[-1] - ACTIONS).abs()[0, 1]
    assert bool((nearer < (free[-1] - ACTIONS).abs()[0, 1]).all())


def test_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 Euler step, got 0"):
        flow_steps(0)


def test_the_embedding_of_time_has_sines_first_and_both_ends_of_the_periods() -> None:
    embedding = time_embedding([0.37], 8, shortest=0.004, longest=4.0)[0]
    assert embedding[0].item() == pytest.approx(math.sin(2 * math.pi * 0.37 / 0.004), abs=1e-6)
    assert embedding[3].item() == pytest.approx(math.sin(2 * math.pi * 0.37 / 4.0), abs=1e-6)
    assert embedding[4].item() == pytest.approx(math.cos(2 * math.pi * 0.37 / 0.004), abs=1e-6)
    with pytest.raises(ConfigError, match="even width"):
        time_embedding([0.5], 7, shortest=0.004, longest=4.0)


def test_a_cache_computes_where_it_is_asked_to_and_at_first() -> None:
    ran: list[int] = []

    def at(cache: StepCache[int], step: int) -> int:
        def compute() -> int:
            ran.append(step)
            return step

        return cache.at(step, compute)

    some: StepCache[int] = StepCache([0, 3])
    assert [at(some, step) for step in range(5)] == [0, 0, 0, 3, 3]
    assert ran == [0, 3]
    every: StepCache[int] = StepCache(None)
    assert [at(every, step) for step in range(3)] == [0, 1, 2]


def test_grouped_attention_is_attention_with_keys_and_values_repeated() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 6, 4, 8, generator=generator)
    k, v = (torch.randn(1, 2, 5, 8, generator=generator) for _ in range(2))
    mask = torch.rand(4, 5, generator=generator) < 0.6
    mask[:, 0] = True
    wide_k, wide_v = (x.repeat_interleave(3, dim=1) for x in (k, v))
    scores = (q @ wide_k.transpose(-2, -1) / math.sqrt(8)).masked_fill(~mask, -torch.inf)
    assert torch.allclose(
        grouped_attention(q, k, v, mask[None]), scores.softmax(-1) @ wide_v, atol=1e-6
    )


def test_a_grouped_layer_has_a_key_projection_of_its_source() -> None:
    layer = GroupedAttention(24, heads=4, kv_heads=2, head_dim=16, width_in=32)
    assert layer.k_proj.weight.shape == (32, 32)
    assert layer.q_proj.weight.shape == (64, 24)
    assert layer.o_proj.weight.shape == (24, 64)
