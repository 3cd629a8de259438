"""Which visual tokens a trimmed decoder keeps: EfficientVLA's three groups, and the controls that
they must beat.

A selector is a pure function from what is known where tokens are dropped to ascending indices of a
fixed number, so it exports as TopK and Gather. EfficientVLA (arXiv 2506.10100) writes relevance as
visual-to-text attention; under a causal mask with the image in front that is zero, so it is read
here as text (query) to visual (key). The paper does not specify which features diversity compares:
here, by default, the hidden states where tokens are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from trimvla.policies.trimming.places import grid, nearest
from trimvla.runtime.bundle.plan import TokenPlan
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Seen:
    """What a selector may look at: features float[b, P, D] of the visual tokens, relevance float[b,
    P] or none.

    The tokens of several cameras follow each other, as many of each.
    """

    features: Tensor
    relevance: Tensor | None
    cameras: int = 1
    places: tuple[int, ...] | None = None
    """Raster indices of the tokens, where patches of the (one) image have left before."""
    patches: int | None = None
    """How many there are in the whole image."""

    def of_camera(self, index: int) -> Seen:
        """What there is of one camera alone."""
        if self.cameras == 1:
            return self
        count = self.features.shape[1] // self.cameras
        part = slice(index * count, (index + 1) * count)
        looked = None if self.relevance is None else self.relevance[:, part]
        return Seen(self.features[:, part], looked)


@dataclass(frozen=True)
class Groups:
    """EfficientVLA's choice in rank order: int64[b, key], int64[b, task], int64[b, diverse]."""

    key: Tensor
    task: Tensor
    diverse: Tensor


Select = Callable[[TokenPlan, Seen], Tensor]


def relevance(
    probabilities: Tensor,
    rows: str,
    last: Tensor,
    patches: int,
    *,
    lead: int = 1,
    start: int | None = None,
) -> Tensor:
    """How much the chosen text rows look at each visual token.

    Args:
        probabilities: float[b, heads, L - lead, m + P + L]: attention of the ids behind the
            image.
        rows: see `TokenPlan.rows`.
        last: int64[b], index of EOS in the ids; what lies right of it is padding and never counts.
        patches: P.
        lead: ids before the image.
        start: the first visual token's key, m + lead (None: m is 0).

    Returns:
        float[b, P]: sum over the rows of the mean over the heads.
    """
    start = lead if start is None else start
    index = torch.arange(lead, probabilities.shape[2] + lead, device=last.device)
    end = last[:, None] - (2 if rows == "instruction" else 0)
    counted = (index == end) if rows == "last" else (index <= end)
    looked = probabilities[..., start : start + patches].mean(dim=1)
    return (looked * counted[..., None].to(looked.dtype)).sum(dim=1)


def min_max(scores: Tensor) -> Tensor:
    """float[b, P] stretched to 0 .. 1; ranks do not change, so selection does not need it."""
    low = scores.amin(-1, keepdim=True)
    high = scores.amax(-1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)


def diversity(features: Tensor, key: Tensor) -> Tensor:
    """1 - largest cosine to a key token: float[b, P, D], int64[b, k] -> float[b, P]."""
    unit = F.normalize(features.float(), dim=-1)
    keys = unit.gather(1, key[..., None].expand(-1, -1, unit.shape[-1]))
    return 1.0 - (unit @ keys.transpose(1, 2)).amax(dim=-1)


def efficientvla_groups(plan: TokenPlan, seen: Seen) -> Groups:
    """Key tokens by relevance, then task tokens by relevance, then the rest by diversity against
    the key tokens.
    """
    task = math.floor(plan.alpha * (plan.keep - plan.key))
    ranked = _needed(seen).topk(plan.key + task, dim=-1).indices
    key = ranked[:, : plan.key]
    unlike = diversity(seen.features, key).scatter(1, ranked, -torch.inf)
    return Groups(
        key, ranked[:, plan.key :], unlike.topk(plan.keep - plan.key - task, dim=-1).indices
    )


def efficientvla(plan: TokenPlan, seen: Seen) -> Tensor:
    """Key, task and diverse tokens, in raster order."""
    groups = efficientvla_groups(plan, seen)
    return raster(torch.cat([groups.key, groups.task, groups.diverse], dim=1))


def most_relevant(plan: TokenPlan, seen: Seen) -> Tensor:
    """The tokens that are looked at most, with a floor a camera; by the last position alone it is
    FastV (arXiv 2403.06764).
    """
    scores = _needed(seen)
    if plan.floor:
        count = scores.shape[1] // seen.cameras
        best = scores.unflatten(1, (seen.cameras, count)).topk(plan.floor, dim=-1).indices
        starts = torch.arange(0, scores.shape[1], count, device=scores.device)[:, None]
        scores = scores.scatter(1, (best + starts).flatten(1), torch.inf)
    return raster(scores.topk(plan.keep, dim=-1).indices)


def random(plan: TokenPlan, seen: Seen) -> Tensor:
    """A set drawn once from the plan's seed, the same for every image."""
    return _constant(
        sorted(Random(plan.seed).sample(range(seen.features.shape[1]), plan.keep)), seen
    )


def uniform(plan: TokenPlan, seen: Seen) -> Tensor:
    """A grid over the image, the same for every image; where patches have left before, the nearest
    ones to it that are there.
    """
    if seen.places is None or seen.patches is None:
        return _constant(grid(seen.features.shape[1], plan.keep), seen)
    return _constant(nearest(grid(seen.patches, plan.keep), seen.places, seen.patches), seen)


def raster(indices: Tensor) -> Tensor:
    """int64[b, k] in ascending order; sorted as float32, which every backend's TopK takes and which
    holds them.

    Example:
        >>> import torch
        >>> from trimvla.policies import raster
        >>> raster(torch.tensor([7, 2, 5]))
        tensor([2, 5, 7])
    """
    return indices.to(torch.float32).sort(dim=-1).values.to(torch.int64)


def _needed(seen: Seen) -> Tensor:
    assert seen.relevance is not None  # `TokenPlan.scored` needs it
    return seen.relevance


def _constant(indices: list[int], seen: Seen) -> Tensor:
    return torch.tensor(indices, device=seen.features.device).expand(len(seen.features), -1)


SELECTORS: dict[str, Select] = {
    "efficientvla": efficientvla,
    "fastv": most_relevant,
    "relevance": most_relevant,
    "random": random,
    "uniform": uniform,
}
"""For the tokens of one camera, or of several without a quota."""


def select(plan: TokenPlan, seen: Seen) -> Tensor:
    """The raster indices int64[b, keep] over all cameras, ascending, of the tokens that a plan
    keeps.

    With quotas every camera is a choice of its own; a grid is always one a camera.
    """
    quotas = plan.quotas
    if quotas is None and plan.selector == "uniform":
        quotas = even_quotas(plan.keep, seen.cameras)
    choose = find_selector(plan.selector)
    if quotas is None:
        return choose(plan, seen)
    count = seen.features.shape[1] // seen.cameras
    parts = [
        choose(_share(plan, quota), seen.of_camera(camera)) + camera * count
        for camera, quota in enumerate(quotas)
        if quota
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def find_selector(name: str) -> Select:
    """The selector of a plan.

    Raises ConfigError for one of somebody's own that nobody has named here (`own.use_selector`).
    """
    if name not in SELECTORS:
        words = f"code of somebody's own, imported only where you name it: --selector {name}"
        raise ConfigError(
            f"expected a token selector of {sorted(SELECTORS)}, got {name!r}: {words}"
        )
    return SELECTORS[name]


def even_quotas(keep: int, cameras: int) -> tuple[int, ...]:
    """`keep` tokens over all cameras, as even as can be."""
    return tuple(
        (index + 1) * keep // cameras - index * keep // cameras for index in range(cameras)
    )


def _share(plan: TokenPlan, quota: int) -> TokenPlan:
    """The plan for one camera: as large a share of its tokens is key."""
    key = min(quota, max(1, round(plan.key * quota / plan.keep)))
    return msgspec.structs.replace(plan, keep=quota, key=key, quotas=None)


def check_cameras(plan: TokenPlan, cameras: int, tokens: int) -> None:
    """Whether what is kept of each camera fits.

    Args:
        plan: the plan.
        cameras: their number.
        tokens: of each camera.

    Raises:
        ConfigError: as many tokens are not there, or quotas are of another number of cameras.
    """
    if plan.keep > cameras * tokens:
        raise ConfigError(
            f"expected at most {cameras * tokens} visual tokens to keep, got {plan.keep}"
        )
    if plan.quotas is not None and len(plan.quotas) != cameras:
        raise ConfigError(
            f"expected 'quotas' of 'tokens' for {cameras} cameras, got {len(plan.quotas)}"
        )
    if max(plan.quotas or (0,)) > tokens:
        raise ConfigError(
            f"expected 'quotas' of 'tokens' of at most {tokens}, the tokens of a camera, got"
            f" {plan.quotas}"
        )
    if plan.floor > tokens or plan.floor * cameras > plan.keep:
        most = min(tokens, plan.keep // cameras)
        raise ConfigError(
            f"expected a 'floor' of 'tokens' of at most {most} for {cameras} cameras, got"
            f" {plan.floor}"
        )
