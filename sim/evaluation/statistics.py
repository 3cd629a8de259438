"""What follows from successes: one rate, two policies on the same episodes, simulation against
reality.

Two policies that play the same seeds are compared by the episodes in which they differ (the
discordant pairs): McNemar's exact test, Tango's score interval and a bootstrap interval of the
difference, non-inferiority at a margin. Knows counts and outcomes; knows no episode and no policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000  # of the bootstrap
BISECTIONS = 60  # halve [-1, 1] down to the last bit


@dataclass(frozen=True)
class Pairs:
    """Episodes of two policies on the same seeds, by who succeeded."""

    both: int
    candidate_only: int
    reference_only: int
    neither: int

    @property
    def n(self) -> int:
        """All pairs."""
        return self.both + self.candidate_only + self.reference_only + self.neither

    @property
    def difference(self) -> float:
        """The candidate's success rate minus the reference's."""
        return (self.candidate_only - self.reference_only) / self.n


@dataclass(frozen=True)
class Comparison:
    """The difference candidate - reference in success rate, from paired episodes.

    `interval` (Tango's, two-sided at `confidence`) decides: `non_inferior` means that its lower
    end, `lower_bound`, is above -`margin`; one-sided, that is a test at (1 - `confidence`) / 2.
    `p_value` is McNemar's, exact.
    """

    difference: float
    interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]
    confidence: float
    both: int
    candidate_only: int
    reference_only: int
    neither: int
    p_value: float
    margin: float
    lower_bound: float
    non_inferior: bool


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a success rate.

    Args:
        successes: at most `n`.
        n: trials, at least 1.
        confidence: two-sided.

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: counts that cannot be.

    Example:
        >>> from trimvla.sim import wilson_interval
        >>> low, high = wilson_interval(533, 600)
        >>> round(low, 3), round(high, 3)
        (0.861, 0.911)
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = _quantile(confidence)
    rate = successes / n
    scale = 1 + z * z / n
    middle = (rate + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    # exactly 0 and 1 at the ends, but for rounding
    low = middle - half
    high = middle + half
    return (low if successes else 0.0), (high if successes < n else 1.0)


def count_pairs(candidate: Sequence[int | bool], reference: Sequence[int | bool]) -> Pairs:
    """Count the outcomes of two policies; entry i of both belongs to the same episode.

    Raises ValueError where there are no pairs.
    """
    if not len(candidate) == len(reference) > 0:
        raise ValueError(
            f"expected as many outcomes of both, at least 1, got {len(candidate)} and"
            f" {len(reference)}"
        )
    seen = [(bool(a), bool(b)) for a, b in zip(candidate, reference, strict=True)]
    return Pairs(
        *(seen.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    )


def compare(
    candidate: Sequence[int | bool],
    reference: Sequence[int | bool],
    *,
    margin: float,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two policies that played the same episodes, in the same order.

    Tango's interval decides, not the bootstrap's: where no episode separates the two, the
    bootstrap sees no difference in any resample and its interval is the point 0, however few the
    episodes are.

    Raises:
        ValueError: no pairs, or a margin outside (0, 1).

    Example:
        >>> from trimvla.sim import compare
        >>> found = compare([1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1], margin=0.05)
        >>> found.difference, found.candidate_only, found.reference_only, found.non_inferior
        (0.0, 1, 1, False)
    """
    if not 0 < margin < 1:
        raise ValueError(f"expected 0 < margin < 1, got {margin}")
    pairs = count_pairs(candidate, reference)
    interval = tango_interval(pairs, confidence)
    return Comparison(
        difference=pairs.difference,
        interval=interval,
        bootstrap_interval=bootstrap_interval(pairs, confidence),
        confidence=confidence,
        both=pairs.both,
        candidate_only=pairs.candidate_only,
        reference_only=pairs.reference_only,
        neither=pairs.neither,
        p_value=mcnemar_p(pairs.candidate_only, pairs.reference_only),
        margin=margin,
        lower_bound=interval[0],
        non_inferior=interval[0] > -margin,
    )


def mcnemar_p(candidate_only: int, reference_only: int) -> float:
    """McNemar's exact two-sided p-value: were both equally good, each discordant pair would be a
    fair coin.
    """
    tosses = candidate_only + reference_only
    fewer = min(candidate_only, reference_only)
    ways = sum(math.comb(tosses, heads) for heads in range(fewer + 1))
    return min(1.0, 2 * ways / 2**tosses)


def tango_interval(pairs: Pairs, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a paired difference of rates, within [-1, 1]; never a point, even without
    discordant pairs.

    Tango, Statistics in Medicine 17 (1998) 891-908: all differences that a score test does not
    reject.
    """
    z = _quantile(confidence)
    flipped = Pairs(pairs.both, pairs.reference_only, pairs.candidate_only, pairs.neither)
    return _lower_limit(pairs, z), -_lower_limit(flipped, z)


def bootstrap_interval(
    pairs: Pairs, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the difference over resampled pairs; a point where no pair is
    discordant.

    Drawing n pairs with replacement is one multinomial draw of the counts.
    """
    concordant = pairs.both + pairs.neither
    shares = np.array([pairs.candidate_only, pairs.reference_only, concordant]) / pairs.n
    counts = np.random.default_rng(seed).multinomial(pairs.n, shares, size=resamples)
    differences = (counts[:, 0] - counts[:, 1]) / pairs.n
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"expected 0 < confidence < 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _lower_limit(pairs: Pairs, z: float) -> float:
    """The difference below the estimate at which the score reaches z: it falls as the difference
    grows.
    """
    low = -1.0
    high = pairs.difference
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(pairs, middle) > z else (low, middle)
    return low


def _score(pairs: Pairs, difference: float) -> float:
    """Standardised distance of the estimate from `difference`, which must not exceed it.

    Its variance takes the rate q of `reference_only` that is most likely under `difference`: the
    larger root of 2n q^2 + linear q + constant.
    """
    n = pairs.n
    won = pairs.candidate_only
    lost = pairs.reference_only
    linear = (2 * n - won + lost) * difference - won - lost
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear**2 - 8 * n * constant))
    variance = n * ((root - linear) / (2 * n) + difference * (1 - difference))
    distance = won - lost - n * difference
    # from below, `distance` is not negative
    return distance / math.sqrt(variance) if variance > 0 else math.inf


def pearson(simulated: Sequence[float], real: Sequence[float]) -> float:
    """Pearson's correlation of policies' success rates; in either order.

    Raises:
        ValueError: fewer than two policies, or all of them alike.
    """
    x, y = _rates(simulated, real)
    x = x - x.mean()
    y = y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    if scale == 0:
        raise ValueError("expected success rates that differ, got all alike")
    return float(x @ y) / scale


def mean_maximum_rank_violation(simulated: Sequence[float], real: Sequence[float]) -> float:
    """SIMPLER's MMRV: for every policy the largest real difference to one that the simulator ranks
    wrongly; their mean.

    0 is best. Not symmetric: what counts is the real difference. A tie on one side alone is a
    violation. Li et al. 2024 (arXiv 2405.05941).
    """
    x, y = _rates(simulated, real)
    wrong = (x[:, None] > x[None]) != (y[:, None] > y[None])
    return float((abs(y[:, None] - y[None]) * wrong).max(axis=1).mean())


def _rates(simulated: Sequence[float], real: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(simulated, np.float64)
    y = np.asarray(real, np.float64)
    if not (x.ndim == y.ndim == 1 and len(x) == len(y) > 1):
        raise ValueError(
            f"expected as many rates of both, at least 2, got {list(x.shape)} and {list(y.shape)}"
        )
    return x, y
