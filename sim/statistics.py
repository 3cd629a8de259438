"""What a number of successes says: Wilson's interval. Knows counts; knows no episodes."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a success rate.

    Args:
        successes: at most `trials`.
        trials: at least 1.
        confidence: two-sided.

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: counts that cannot be.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, scale = successes / trials, 1 + z * z / trials
    middle = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    low, high = middle - half, middle + half  # exactly 0 and 1 at the ends, but for rounding
    return (low if successes else 0.0), (high if successes < trials else 1.0)
