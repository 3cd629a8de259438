"""A point of the search: how much of each kind a plan keeps, and the grid of points that is looked
at.

Which layers, channels and tokens these are is decided by nested orders, so a point is a handful of
numbers. Knows a policy's counts; measures nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from trimvla.policies.sizes.counts import Trimmable
from trimvla.runtime.bundle.plan import TokenPlan
from trimvla.runtime.bundle.vision_plan import PatchPlan

LAYERS = (1.0, 0.875, 0.75, 0.6875, 0.625, 0.5625, 0.5, 0.4375)
WIDTHS = (1.0, 0.75, 0.5)
TOKENS = (1.0, 0.4375, 0.21875, 0.109375)  # of an image's visual tokens
PATCHES = (1.0, 0.5)
PATCHES_AFTER = 2  # blocks; of the tabletop's four, half of the patches leave free behind them
AMOUNTS = ("layers", "mlp_keep", "tokens", "patches", "cache_interval")
KEY_TOKENS = 4
TOKENS_AFTER = 5  # kept layers: in a small policy words have not found their things before


@dataclass(frozen=True, order=True)
class Point:
    """How much is kept; the largest of each kind is all."""

    layers: int
    """Language layers."""
    mlp_keep: float
    """Share of the MLP channels, 0 to 1."""
    tokens: int
    """Visual tokens behind the first layers."""
    patches: int
    """Visual tokens that go on inside the encoders."""
    cache_interval: int
    """The head's blocks run at every n-th sampler step."""

    @property
    def name(self) -> str:
        """As a file's: "l11-m75-t56-p128-c5"."""
        return (
            f"l{self.layers}-m{round(100 * self.mlp_keep)}-t{self.tokens}-p{self.patches}"
            f"-c{self.cache_interval}"
        )


def dense_point(there: Trimmable) -> Point:
    """Everything."""
    return Point(there.layers, 1.0, there.image_tokens, there.image_tokens, 1)


def grid(there: Trimmable, cache_interval: int) -> list[Point]:
    """All points that are looked at, dense first.

    The cache is on in all but the dense one: what it changes in play is not ranked by distances
    (docs/results/tabletop.md), and what it saves is known.

    Args:
        there: what the policy has.
        cache_interval: of every trimmed point.
    """
    dense = dense_point(there)
    found = {dense: None}
    for layers, mlp_keep, tokens, patches in product(
        _counts(there.layers, LAYERS),
        WIDTHS,
        _counts(there.image_tokens, TOKENS),
        _counts(there.image_tokens, PATCHES),
    ):
        if tokens <= patches or tokens == there.image_tokens:
            found[Point(layers, mlp_keep, min(tokens, patches), patches, cache_interval)] = None
    return list(found)


def _counts(whole: int, shares: tuple[float, ...]) -> list[int]:
    """Rounded up, falling, each once."""
    return list(dict.fromkeys(max(1, math.ceil(whole * share)) for share in shares))


def token_plan(point: Point, there: Trimmable) -> TokenPlan | None:
    """Which tokens go on, if not all of those that the encoders give."""
    if point.tokens >= point.patches:
        return None
    after = min(TOKENS_AFTER, point.layers - 1)
    key = min(KEY_TOKENS, point.tokens)
    return TokenPlan(keep=point.tokens, after=after, key=key) if after > 0 else None


def patch_plan(point: Point, there: Trimmable, blocks: int) -> PatchPlan | None:
    """Which patches go on inside encoders of so many blocks, if not all."""
    if point.patches == there.image_tokens:
        return None
    return PatchPlan(keep=point.patches, after=min(PATCHES_AFTER, blocks - 1))


def spread_out(points: list[Point], count: int) -> list[Point]:
    """So many points that lie far from each other, the first of them first: what a device is
    measured with.

    Each next one has the largest distance to those chosen; every kind of amount counts alike.
    """
    places = [
        {value: index for index, value in enumerate(sorted({getattr(p, name) for p in points}))}
        for name in AMOUNTS
    ]
    at = {
        point: [
            place[getattr(point, name)] / max(1, len(place) - 1)
            for name, place in zip(AMOUNTS, places, strict=True)
        ]
        for point in points
    }
    chosen = [points[0]]
    nearest = {point: math.dist(at[point], at[points[0]]) for point in points}
    while len(chosen) < min(count, len(points)):
        following = max(points, key=lambda point: nearest[point])
        chosen.append(following)
        for point in points:
            nearest[point] = min(nearest[point], math.dist(at[point], at[following]))
    return chosen
