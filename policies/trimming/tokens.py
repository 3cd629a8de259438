"""Which visual tokens a trimmed decoder keeps: EfficientVLA's three groups, and the controls that they must beat.

A selector is a pure function from what is known where tokens are dropped to ascending indices of a fixed number, so it
exports as TopK and Gather. EfficientVLA (arXiv 2506.10100) writes relevance as visual-to-text attention;
under a causal mask with the picture in front that is zero, so it is read here as text (query) to visual (key). The
paper does not say which features diversity compares: here, by default, the hidden states where tokens are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from trimvla.runtime.bundle.plan import TokenPlan


@dataclass(frozen=True)
class Seen:
    """What a selector may look at: features float[b, P, D] of the visual tokens, relevance float[b, P] or none."""

    features: Tensor
    relevance: Tensor | None


@dataclass(frozen=True)
class Groups:
    """EfficientVLA's choice in rank order: int64[b, key], int64[b, task], int64[b, diverse]."""

    key: Tensor
    task: Tensor
    diverse: Tensor


Select = Callable[[TokenPlan, Seen], Tensor]


def relevance(probabilities: Tensor, rows: str, last: Tensor, patches: int) -> Tensor:
    """How much the chosen text rows look at each visual token.

    Args:
        probabilities: float[b, heads, L - 1, P + L]: attention of the ids behind BOS.
        rows: see `TokenPlan.rows`.
        last: int64[b], index of EOS in the ids; what lies right of it is padding and never counts.
        patches: P.

    Returns:
        float[b, P]: sum over the rows of the mean over the heads.
    """
    index = torch.arange(1, probabilities.shape[2] + 1, device=last.device)
    end = last[:, None] - (2 if rows == "instruction" else 0)
    counted = (index == end) if rows == "last" else (index <= end)
    looked = probabilities[..., 1 : 1 + patches].mean(dim=1)
    return (looked * counted[..., None].to(looked.dtype)).sum(dim=1)


def min_max(scores: Tensor) -> Tensor:
    """float[b, P] stretched to 0 .. 1; ranks do not change, so selection does not need it."""
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)


def diversity(features: Tensor, key: Tensor) -> Tensor:
    """1 - largest cosine to a key token: float[b, P, D], int64[b, k] -> float[b, P]."""
    unit = F.normalize(features.float(), dim=-1)
    keys = unit.gather(1, key[..., None].expand(-1, -1, unit.shape[-1]))
    return 1.0 - (unit @ keys.transpose(1, 2)).amax(dim=-1)


def efficientvla_groups(plan: TokenPlan, seen: Seen) -> Groups:
    """Key tokens by relevance, then task tokens by relevance, then the rest by diversity against the key tokens."""
    task = math.floor(plan.alpha * (plan.keep - plan.key))
    ranked = _needed(seen).topk(plan.key + task, dim=-1).indices
    key = ranked[:, : plan.key]
    unlike = diversity(seen.features, key).scatter(1, ranked, -torch.inf)
    return Groups(key, ranked[:, plan.key :], unlike.topk(plan.keep - plan.key - task, dim=-1).indices)


def efficientvla(plan: TokenPlan, seen: Seen) -> Tensor:
    """Key, task and diverse tokens, in raster order."""
    groups = efficientvla_groups(plan, seen)
    return raster(torch.cat([groups.key, groups.task, groups.diverse], dim=1))


def fastv(plan: TokenPlan, seen: Seen) -> Tensor:
    """The tokens that the last position looks at most (FastV, arXiv 2403.06764)."""
    return raster(_needed(seen).topk(plan.keep, dim=-1).indices)


def random(plan: TokenPlan, seen: Seen) -> Tensor:
    """A set drawn once from the plan's seed, the same for every picture."""
    return _constant(sorted(Random(plan.seed).sample(range(seen.features.shape[1]), plan.keep)), seen)


def uniform(plan: TokenPlan, seen: Seen) -> Tensor:
    """A grid over the picture, the same for every picture."""
    return _constant(grid(seen.features.shape[1], plan.keep), seen)


def grid(patches: int, keep: int) -> list[int]:
    """`keep` raster indices spread evenly over a square of `patches`: near-equal rows of evenly spaced columns."""
    side, rows = math.isqrt(patches), max(1, round(math.sqrt(keep)))
    indices: list[int] = []
    for r in range(rows):
        columns = (r + 1) * keep // rows - r * keep // rows
        row = int((r + 0.5) * side / rows)
        indices += [row * side + int((c + 0.5) * side / columns) for c in range(columns)]
    return indices


def raster(indices: Tensor) -> Tensor:
    """int64[b, k] in ascending order; sorted as float32, which every backend's TopK takes and which holds them."""
    return indices.to(torch.float32).sort(dim=-1).values.to(torch.int64)


def _needed(seen: Seen) -> Tensor:
    assert seen.relevance is not None  # `TokenPlan.scored` asks for it
    return seen.relevance


def _constant(indices: list[int], seen: Seen) -> Tensor:
    return torch.tensor(indices, device=seen.features.device).expand(len(seen.features), -1)


SELECTORS: dict[str, Select] = {"efficientvla": efficientvla, "fastv": fastv, "random": random, "uniform": uniform}
