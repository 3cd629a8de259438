"""Flow matching over action chunks: Euler steps along a learned velocity, from noise to actions.

Everything about the schedule is plain Python floats worked out once, so a sampler is a loop of
known length over known numbers and exports as one straight graph. Two conventions: time is 1 at the
noise and falls (pi0, pi0.5, SmolVLA), or is 0 there and rises (GR00T). Knows no network: a velocity
is a function. Draws no noise: noise is an input everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from trimvla.runtime.errors import ConfigError

Cached = TypeVar("Cached")
Velocity = Callable[[Tensor, int], Tensor]
"""Noisy actions float[b, H, A] and the number of the step -> their velocity float[b, H, A]."""


@dataclass(frozen=True)
class FlowStep:
    """One Euler step.

    `t` is the time that the network is given, exactly as float32 holds it; `dt` what is added to
    it, with its sign; `to_actions` the rest of the way, so that actions are predicted as x +
    to_actions * v; `pull` how much of a change to the predicted actions arrives in x after the
    step. The noise is changed with them, so that both still explain what the step began with.
    """

    t: float
    dt: float
    to_actions: float
    pull: float


def flow_steps(steps: int, noise_at: Literal[0, 1] = 1) -> list[FlowStep]:
    """The sampler as a table, from noise to actions.

    Args:
        steps: Euler steps, all of the same length.
        noise_at: the time at which x is noise.

    Raises:
        ConfigError: fewer than one step.
    """
    if steps < 1:
        raise ConfigError(f"expected at least 1 Euler step, got {steps}")
    dt = (1 - 2 * noise_at) / steps
    times = [_float32(noise_at + step * dt) for step in range(steps)]
    return [
        FlowStep(t, dt, (1 - noise_at) - t, 1.0 / (steps - step)) for step, t in enumerate(times)
    ]


def _float32(value: float) -> float:
    """The nearest number that float32 holds: the shortest period of a time embedding feels its last
    bit.
    """
    return float(np.float32(value))


def time_embedding(times: Sequence[float], width: int, shortest: float, longest: float) -> Tensor:
    """Sines, then cosines, of times: float32[len(times), width], worked out in float64.

    In the host's memory, even while a policy is built without any: it is made of no weight.

    Args:
        times: of the steps.
        width: even.
        shortest: period of the first frequency.
        longest: period of the last; those between lie geometrically.

    Raises:
        ConfigError: an odd width.
    """
    if width % 2:
        raise ConfigError(f"expected an even width for the embedding of time, got {width}")
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device="cpu")
    rates = 2 * math.pi / (shortest * (longest / shortest) ** fraction)
    angles = torch.tensor(times, dtype=torch.float64, device="cpu")[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


@dataclass(frozen=True)
class KnownRows:
    """What a chunk is guided towards: `actions` float[b, H, A], normalised, and how much, float[b,
    H, 1].

    Weight 1 keeps a row as it is known (on its way it is t * noise + (1 - t) * known), 0 leaves it
    to the sampler. See docs/concepts/chunks.md.
    """

    actions: Tensor
    weight: Tensor


def flow_trajectory(
    velocity: Velocity, noise: Tensor, steps: Sequence[FlowStep], known: KnownRows | None = None
) -> Iterator[Tensor]:
    """Yield float[b, H, A] after each step, from float[b, H, A] noise; the last one is the
    sample.
    """
    x = noise
    for index, step in enumerate(steps):
        v = velocity(x, index)
        following = x + step.dt * v
        if known is not None:
            predicted = x + step.to_actions * v
            following = following + step.pull * known.weight * (known.actions - predicted)
        x = following
        yield x


def flow_sample(
    velocity: Velocity, noise: Tensor, steps: Sequence[FlowStep], known: KnownRows | None = None
) -> Tensor:
    """The last of `flow_trajectory`: float[b, H, A], normalised and not clipped."""
    return list(flow_trajectory(velocity, noise, steps, known))[-1]


class StepCache(Generic[Cached]):
    """What a network computes anew at some steps of one sample and reuses at the others.

    What is kept is the caller's: the sum that all blocks added to the stream, or each block's own
    addition before its gate, where gates depend on the time and are applied anew.
    """

    def __init__(self, recompute: Iterable[int] | None) -> None:
        """`recompute` holds the numbers of the steps that compute; every step does where it is
        none.
        """
        self._recompute = None if recompute is None else frozenset(recompute)
        self._kept: Cached | None = None

    def at(self, step: int, compute: Callable[[], Cached]) -> Cached:
        """What `compute` gives at this step, or gave at the last one that computed."""
        if self._kept is None or self._recompute is None or step in self._recompute:
            self._kept = compute()
        return self._kept
