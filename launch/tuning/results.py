"""The result of `trimvla tune`: a front of points with time, distance and success. Types alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trimvla.launch.ablation.results import Timing
from trimvla.launch.result import VerbResult
from trimvla.sim.evaluation.statistics import Comparison


class TunedPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One point of the front."""

    name: str
    """How much is kept, such as l11-m75-t56-p256-c5."""
    bundle: Path
    """Its bundle."""
    plan: Path
    """Its plan."""
    price_ms: float
    """What its graphs were expected to take on this device [ms]."""
    timing: Timing
    """What it takes, image in, actions out."""
    distance: float
    """Mean square by which its action chunks differ from dense ones, in units of their spread,
    on calibration frames under the same noise."""
    flops_ratio: float
    """Of the dense policy's operations, 0 to 1."""
    success: float | None = None
    """Success rate, 0 to 1; left out where nothing was played, as are the next two."""
    interval: tuple[float, float] | None = None
    """Wilson's interval of that rate at 95 %."""
    against_dense: Comparison | None = None
    """Paired with the dense bundle on the same seeds; none for that one itself."""
    meets: tuple[str, ...] = ()
    """Budgets for which it was chosen, as they were given."""


class PriceCheck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How well prices that are worked out fit times that are measured."""

    bundles: int
    """That were measured."""
    median_error: float | None = None
    """Relative error where the others alone are fitted, median of the absolute values."""
    worst_error: float | None = None
    """The largest of them."""
    rank_correlation: float | None = None
    """Spearman's, of the front's prices and its measured times."""


class TuneResult(VerbResult, frozen=True, kw_only=True):
    """The front, from dense to the fastest."""

    points: list[TunedPoint]
    """The dense bundle first."""
    candidates: int
    """Points that were priced and compared with dense on frames."""
    prices: PriceCheck
    """Of this device."""
    distance_rank_correlation: float | None = None
    """Spearman's, of the front's distances and success rates; left out where nothing was played."""
    minutes: dict[str, float]
    """What each part of the search took, on this run [min]."""
    system: Path | None = None
    """A TOML with the points as rungs of a ladder, for `trimvla run`."""
