"""Diffusion over action chunks: cosine schedule, forward noising, DDIM, classifier-free guidance.

Everything about the schedule is plain Python floats worked out once, so a sampler is a loop of
known length over known numbers and exports as one straight graph. Epsilon prediction, eta 0, no
clipping (Nichol and Dhariwal 2021; Song et al. 2021; Ho and Salimans 2022), with the conventions of
microsoft/CogACT. Draws no noise: noise is an input everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.dit import Dit
from trimvla.runtime.errors import ConfigError

MAX_BETA = 0.999
SINGLE_STEP = 50  # the timestep that the public code visits when it takes one step only
Array = TypeVar("Array", Tensor, np.ndarray)
Epsilon = Callable[[Tensor, int | Tensor], Tensor]


def betas(train_steps: int) -> list[float]:
    """Squared-cosine schedule (`squaredcos_cap_v2`): one beta per training step."""

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = (
        alpha_bar((i + 1) / train_steps) / alpha_bar(i / train_steps) for i in range(train_steps)
    )
    return [min(1.0 - ratio, MAX_BETA) for ratio in ratios]


def alphas_cumprod(train_steps: int) -> list[float]:
    """Share of the signal's variance left after each training step."""
    product = 1.0
    kept = []
    for beta in betas(train_steps):
        product *= 1.0 - beta
        kept.append(product)
    return kept


def q_sample(x0: Tensor, t: Tensor, noise: Tensor, train_steps: int) -> Tensor:
    """Noise clean actions: float[b, H, A] at int64[b] timesteps -> float[b, H, A]."""
    kept = x0.new_tensor(alphas_cumprod(train_steps), dtype=torch.float32)[t][:, None, None]
    return kept.sqrt() * x0 + (1.0 - kept).sqrt() * noise


def timesteps(train_steps: int, steps: int) -> list[int]:
    """Training timesteps that a DDIM run of `steps` visits, in visiting order (noisiest first).

    Raises:
        ConfigError: no constant stride gives this number of steps.
    """
    if steps == 1:
        return [SINGLE_STEP * train_steps // 100]
    for stride in range(1, train_steps):
        visited = range(0, train_steps, stride)
        if len(visited) == steps:
            return list(reversed(visited))
    raise ConfigError(
        f"expected a number of DDIM steps that a constant stride gives, got {steps} of"
        f" {train_steps}"
    )


@dataclass(frozen=True)
class DdimStep:
    """One sampler step: its timestep, and the signal left before and after it."""

    t: int
    kept: float
    kept_next: float

    def apply(self, x: Array, epsilon: Array) -> tuple[Array, Array]:
        """float[b, H, A] and its predicted noise -> (less noisy actions, predicted clean
        actions).
        """
        x0 = math.sqrt(1.0 / self.kept) * x - math.sqrt(1.0 / self.kept - 1.0) * epsilon
        return math.sqrt(self.kept_next) * x0 + math.sqrt(1.0 - self.kept_next) * epsilon, x0

    @property
    def effect(self) -> float:
        """How far the actions after the step move for each unit of predicted noise; below 0."""
        through_x0 = math.sqrt(self.kept_next) * math.sqrt(1.0 / self.kept - 1.0)
        return math.sqrt(1.0 - self.kept_next) - through_x0

    @property
    def pull(self) -> float:
        """How much of a change to the predicted clean actions arrives in the actions after the
        step.

        The noise is changed with them, so that both still explain what the step began with.
        """
        along = math.sqrt((1.0 - self.kept_next) * self.kept / (1.0 - self.kept))
        return math.sqrt(self.kept_next) - along


def ddim_steps(train_steps: int, steps: int) -> list[DdimStep]:
    """The sampler as a table, in visiting order."""
    kept = alphas_cumprod(train_steps)
    visited = timesteps(train_steps, steps)
    after = [kept[t] for t in visited[1:]] + [1.0]
    return [DdimStep(t, kept[t], following) for t, following in zip(visited, after, strict=True)]


def guided(net: Dit | CachedDit, cognition: Tensor, guidance: float) -> Epsilon:
    """Noise prediction under classifier-free guidance: eps = uncond + scale (cond - uncond).

    Both halves run as one batch; a scale of 1 or less runs the conditional half alone.
    """
    b = len(cognition)
    if guidance <= 1.0:
        return lambda x, t: net(x, _timestep(x, t, b), cognition)
    both = torch.cat([cognition, net.uncondition.expand(b, -1).to(cognition.dtype)])

    def epsilon(x: Tensor, t: int | Tensor) -> Tensor:
        conditional, unconditional = net(torch.cat([x, x]), _timestep(x, t, 2 * b), both).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return epsilon


def _timestep(x: Tensor, t: int | Tensor, count: int) -> Tensor:
    """A number is baked into an exported graph; a float[1] is an input of it."""
    if isinstance(t, Tensor):
        return t.expand(count)
    return torch.full((count,), float(t), device=x.device)


@dataclass(frozen=True)
class Known:
    """What an action chunk is guided towards: `actions` float[b, H, A], normalised, and how much,
    float[b, H, 1].

    Weight 1 keeps a row as it is known, 0 leaves it to the sampler. See docs/concepts/chunks.md.
    """

    actions: Tensor
    weight: Tensor


def ddim_trajectory(
    epsilon: Epsilon, noise: Tensor, steps: list[DdimStep], known: Known | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (actions after the step, predicted clean actions) for each step, from float[b, H, A]
    noise.
    """
    x = noise
    for step in steps:
        x, x0 = step.apply(x, epsilon(x, step.t))
        if known is not None:
            change = known.weight * (known.actions - x0)
            x = x + step.pull * change
            x0 = x0 + change
        yield x, x0


def ddim_sample(
    net: Dit | CachedDit,
    cognition: Tensor,
    noise: Tensor,
    *,
    train_steps: int,
    steps: int,
    guidance: float,
    known: Known | None = None,
) -> Tensor:
    """Sample an action chunk.

    Args:
        net: the action head.
        cognition: float[b, D].
        noise: float[b, H, A], standard normal.
        train_steps: length of the training schedule.
        steps: DDIM steps.
        guidance: classifier-free guidance scale.
        known: rows that are known, and how much they count.

    Returns:
        float[b, H, A], normalised and not clipped.
    """
    trajectory = ddim_trajectory(
        guided(net, cognition, guidance), noise, ddim_steps(train_steps, steps), known
    )
    return list(trajectory)[-1][0]
