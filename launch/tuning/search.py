"""Which points are worth an export: those that no other one beats in both time and distance, and of
these as many as are wanted.

Pure: prices and distances in, points out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimvla.launch.tuning.points import Point
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Candidate:
    """A point with what is known of it before it is exported."""

    point: Point
    price_ms: float
    """Of one action chunk, worked out."""
    distance: float
    """How far its actions lie from the dense policy's, without training (`policies.trimming`)."""


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one beats in time and distance, from the slowest to the fastest."""
    found: list[Candidate] = []
    least = math.inf
    for one in sorted(candidates, key=lambda each: (each.price_ms, each.distance)):
        if one.distance < least:
            least = one.distance
            found.append(one)
    return found[::-1]


def chosen(
    candidates: Sequence[Candidate], dense_ms: float, budgets: Sequence[float], count: int
) -> list[Candidate]:
    """Points of the front: for each budget the nearest to dense that meets it, and others in equal
    steps of speed between them.

    Args:
        candidates: of the search, the dense one among them.
        dense_ms: of the dense policy.
        budgets: what one action chunk may take [ms].
        count: how many in all, the dense one not counted.

    Raises:
        ConfigError: a budget that no point meets, with the fastest and its distance.
    """
    line = front(candidates)
    fastest = line[-1]
    found: dict[Point, Candidate] = {}
    for budget in budgets:
        meets = [one for one in line if one.price_ms <= budget]
        if not meets:
            raise ConfigError(
                f"expected a budget of at least {fastest.price_ms:.3g} ms on this device"
                f" ({dense_ms / fastest.price_ms:.2f} times dense, distance"
                f" {fastest.distance:.3g}), got {budget:.3g} ms"
            )
        found[meets[0].point] = meets[0]
    trimmed = [one for one in line if one.price_ms < dense_ms]
    if trimmed:
        low = math.log(trimmed[-1].price_ms)
        high = math.log(dense_ms)
        for step in range(1, count + 1):
            aim = math.exp(high + (low - high) * step / count)
            nearest = min(trimmed, key=lambda one: abs(math.log(one.price_ms / aim)))
            if len(found) < count:
                found.setdefault(nearest.point, nearest)
    return sorted(found.values(), key=lambda one: -one.price_ms)
