"""Does one policy move worse than another? Both on the same episodes, compared episode by episode.

Jerk, gripper flips and holds are judged each: a ratio of the candidate to the reference with a
bootstrap interval over episodes. Knows counts of motion; plays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.control.motion_quality import MotionCounts

MARGIN = 0.1  # a ratio of up to 1.1 is no worse
FEWEST = 10  # episodes: a bootstrap of fewer sees differences too small, and settles nothing
RESAMPLES = 4000  # of the bootstrap: how often each episode is drawn
CONFIDENCE = 0.95
Array = NDArray[np.float64]


class MotionRatio(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the candidate over the reference's."""

    ratio: float | None
    """Above 1 the candidate moves worse; none where the reference has none of it."""
    interval: tuple[float, float] | None
    """Of the ratio at 95 %, over episodes; likewise."""
    candidate: float
    """Mean over episodes."""
    reference: float
    """Mean over episodes."""
    worse: bool
    """The ratio is above 1 with its whole interval, and above 1.1 itself; never of fewer than 10
    episodes."""
    no_worse: bool
    """The whole interval is at most 1.1; likewise."""


class MotionComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate against reference, by how they move."""

    episodes: int
    """Pairs that were compared."""
    jerk: MotionRatio
    """RMS of the jerk: geometric mean of the dimensions' ratios, as their units differ."""
    jerk_by_dimension: tuple[float | None, ...]
    """The ratio of each dimension; none for a gripper."""
    flips: MotionRatio
    """Gripper flips a minute."""
    holds: MotionRatio
    """Share of the commands that were holds."""
    moves_worse: bool
    """Whether one of the three is worse."""


def compare_motion(
    candidate: Sequence[MotionCounts], reference: Sequence[MotionCounts]
) -> MotionComparison:
    """Compare two policies that played the same episodes, in the same order.

    Raises ValueError where there are no pairs.
    """
    if not len(candidate) == len(reference) > 0:
        raise ValueError(
            f"expected as many episodes of both, at least 1, got {len(candidate)} and"
            f" {len(reference)}"
        )
    count = len(candidate)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    jerk = _jerk_ratio(_jerks(candidate), _jerks(reference), draws)
    flips = _ratio(
        np.array([it.flips_per_minute for it in candidate])[:, None],
        np.array([it.flips_per_minute for it in reference])[:, None],
        draws,
    )
    holds = _ratio(
        np.array([it.held for it in candidate])[:, None],
        np.array([it.held for it in reference])[:, None],
        draws,
    )
    each = _means(_jerks(candidate)) / _means(_jerks(reference))
    return MotionComparison(
        episodes=len(candidate),
        jerk=jerk,
        jerk_by_dimension=tuple(_number(value) for value in each),
        flips=flips,
        holds=holds,
        moves_worse=jerk.worse or flips.worse or holds.worse,
    )


def motion_words(candidate: str, reference: str, found: MotionComparison) -> str:
    """What the figures allow one to conclude, as a sentence."""
    named = (("jerk", found.jerk), ("gripper flips", found.flips), ("holds", found.holds))
    worse = [_shown(name, each) for name, each in named if each.worse]
    if worse:
        return f"{candidate} moves worse than {reference}: {', '.join(worse)}"
    open_ones = [_shown(name, each) for name, each in named if not each.no_worse]
    if open_ones:
        return (
            f"these episodes do not settle whether {candidate} moves worse than {reference}:"
            f" {', '.join(open_ones)}"
        )
    return f"{candidate} moves no worse than {reference}: {_shown('jerk', found.jerk)}"


def _shown(name: str, found: MotionRatio) -> str:
    if found.ratio is None or found.interval is None:
        return f"{name} {found.candidate:.3g} against {found.reference:.3g}"
    low, high = found.interval
    return f"{name} {found.ratio:.2f} times (95 % interval {low:.2f} to {high:.2f})"


def _jerks(episodes: Sequence[MotionCounts]) -> Array:
    """float64[E, D]: each episode's jerk RMS; not a number for a gripper, or too short an
    episode.
    """
    gripper = np.array([kind == "gripper" for kind in episodes[0].kinds])
    return np.where(gripper, np.nan, np.array([each.jerk_rms for each in episodes]))


def _means(values: Array) -> Array:
    """Of float64[E, D] over episodes, without those that have none; not a number where none has
    one, or all are 0.
    """
    return _drawn_means(values, np.ones((1, len(values)), np.int64))[0]


def _drawn_means(values: Array, draws: NDArray[np.int64]) -> Array:
    """The same float64[R, D] for each draw int64[R, E] of episodes."""
    known = np.isfinite(values)
    total = draws @ np.where(known, values, 0.0)
    counts = draws @ known.astype(np.float64)
    means = total / np.maximum(counts, 1.0)
    return np.where((counts > 0) & (means > 0), means, np.nan)


def _jerk_ratio(candidate: Array, reference: Array, draws: NDArray[np.int64]) -> MotionRatio:
    """The geometric mean of the dimensions' ratios, and its bootstrap."""
    moving = np.isfinite(_means(candidate)) & np.isfinite(_means(reference))
    if not moving.any():
        return _ratio(np.zeros((len(candidate), 1)), np.zeros((len(reference), 1)), draws)
    return _ratio(candidate[:, moving], reference[:, moving], draws)


def _ratio(candidate: Array, reference: Array, draws: NDArray[np.int64]) -> MotionRatio:
    """Of values float64[E, K]: the geometric mean over K of ratios of means over episodes."""
    ours = float(np.nanmean(candidate)) if np.isfinite(candidate).any() else 0.0
    theirs = float(np.nanmean(reference)) if np.isfinite(reference).any() else 0.0
    enough = len(candidate) >= FEWEST
    if theirs == 0:
        return MotionRatio(
            ratio=None,
            interval=None,
            candidate=_rounded(ours),
            reference=0.0,
            worse=ours > 0 and enough,
            no_worse=ours == 0 and enough,
        )
    ratio = _geometric(_means(candidate), _means(reference))
    drawn = _geometric(_drawn_means(candidate, draws), _drawn_means(reference, draws))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return MotionRatio(
        ratio=_rounded(float(ratio)),
        interval=(_rounded(float(low)), _rounded(float(high))),
        candidate=_rounded(ours),
        reference=_rounded(theirs),
        worse=bool(enough and low > 1 and ratio > 1 + MARGIN),
        no_worse=bool(enough and high <= 1 + MARGIN),
    )


def _geometric(ours: Array, theirs: Array) -> Array:
    """exp(mean(log(ours / theirs))) over the last axis; what is not a number counts as 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.log(np.nan_to_num(ours, nan=0.0))
        below = np.log(np.nan_to_num(theirs, nan=0.0))
        return np.exp(np.mean(above - below, axis=-1))


def _number(value: float) -> float | None:
    return _rounded(float(value)) if np.isfinite(value) else None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
