"""The result of `trimvla ablate`: one row a plan with success, time and cost. Knows types alone."""

from __future__ import annotations

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.runtime.bundle.plan import Plan
from trimvla.sim.evaluation.statistics import Comparison


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One action chunk on one backend: image in, actions out."""

    p50_ms: float
    """Median [ms]."""
    p99_ms: float
    """99th percentile [ms]."""
    ratio_to_dense: float | None
    """The dense policy's time on the same backend over this one's: the median over the turns."""
    ratio_low: float | None
    """Lower quartile of that ratio."""
    ratio_high: float | None
    """Upper quartile of that ratio."""
    ratio_to_eager_dense: float | None = None
    """The same against the dense policy in eager torch."""


class AblationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One plan: what it keeps, what it costs, how long it takes, how often it succeeds."""

    name: str
    """Of the row."""
    control: bool
    """Whether it is a control, which the method must beat."""
    parameters: int
    """Of the whole checkpoint under the plan."""
    flops: int
    """Floating-point operations of one action chunk."""
    flops_ratio: float
    """Of the dense policy's operations, 0 to 1."""
    backends: dict[str, Timing]
    """Backend -> times."""
    success: float
    """Success rate, 0 to 1."""
    interval: tuple[float, float]
    """Wilson's interval of that rate at 95 %."""
    successes: int
    """How many episodes succeeded."""
    episodes: int
    """How many were played."""
    by_verb: dict[str, tuple[int, int]]
    """Kind of task -> successes and episodes."""
    against_dense: Comparison | None
    """Paired with the dense bundle on the same seeds; none for that one itself."""
    outcomes: str
    """1 for a success, else 0, by rising seed."""
    plan: Plan
    """What is kept, without the lists of MLP channels."""


class AblationResult(VerbResult, frozen=True, kw_only=True):
    """All rows in the order of the table."""

    rows: list[AblationRow]
    """One a plan."""
    settings: dict[str, object]
    """The options of the run by name."""
