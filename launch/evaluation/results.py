"""The result of `trimvla eval`: success by bundle, pairs with a reference, curves. Knows types
alone."""

from __future__ import annotations

import msgspec

from trimvla.policies.sizes.roofline import Device
from trimvla.sim.evaluation.motion_pairs import MotionComparison
from trimvla.sim.evaluation.statistics import Comparison
from trimvla.sim.evaluation.success import Success


class Estimate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device's latency from sizes and data sheets: a lower bound, no measurement."""

    bundle: str
    """Whose plan is meant."""
    estimate: bool
    """Always true: a mark for whoever reads the file."""
    device: Device
    """From its data sheet."""
    attained: float
    """Share of the roofline that is assumed, 0 to 1."""
    scale: str
    """The policy at whose size `ms` is: CogACT-Base for a bundle of its shape, else the bundle's
    own."""
    ms: float
    """Of that policy under the bundle's plan, one chunk [ms]."""
    bundle_ms: float
    """Of the bundle itself, one chunk [ms]."""


class CurveRow(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle at one latency."""

    bundle: str
    """Which."""
    latency: str | None
    """The latency's name as it was requested; none where the simulator waits."""
    ms: float | None
    """Its mean [ms]; none where the simulator waits, or time was taken as it came."""
    success_rate: float
    """Share of the episodes, 0 to 1."""
    interval: tuple[float, float]
    """Wilson's interval of that rate at 95 %."""
    successes: int
    """How many episodes succeeded."""
    episodes: int
    """How many were played."""
    mean_steps: float | None
    """Of the episodes that succeeded; none where none did."""
    held: float
    """Share of the steps without an action that was due, 0 to 1."""
    against_top: Comparison | None
    """Paired with the first bundle of the ladder at the same latency; none for that one itself."""
    outcomes: str
    """1 for a success, else 0, by rising seed."""


class BundleResult(Success, frozen=True, kw_only=True):
    """One bundle, and what it played."""

    bundle: str
    """A path, a shipped bundle's name, or `expert`."""
    seed: int
    """Of the first episode; the others follow."""
    variant: str
    """What the images look like (tabletop)."""
    swap_instruction: bool
    """Whether another object was named than the goal's."""
    execute: int
    """Steps of a chunk that were executed before the next look, at least."""


class EvalResult(BundleResult, frozen=True, kw_only=True):
    """The candidate in the first condition; a reference and curves where they were requested."""

    ok: bool
    """Always true: a low rate is no failure."""
    env: str
    """The environment."""
    backend: str
    """What executed the stages."""
    against: BundleResult | None = None
    """The reference on the same seeds; left out without --against."""
    comparison: Comparison | None = None
    """Candidate minus reference, paired; left out without --against."""
    motion_comparison: MotionComparison | None = None
    """Whether the candidate moves worse than the reference, paired; left out without --against."""
    curve: list[CurveRow] | None = None
    """One row a bundle and latency; left out without --latency and --rungs."""
    estimates: list[Estimate] | None = None
    """Where the latencies of devices come from; with `curve`."""
    control_hz: float | None = None
    """Actions a second in the environment; with `curve`."""
    chunks: str | msgspec.UnsetType | None = msgspec.UNSET
    """How one chunk followed another: --chunks; with `curve`."""
