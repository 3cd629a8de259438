"""What `bench` and `gpu-bench` answer. Knows types alone.

A layer is where a time begins and ends: L0 the graphs alone, L1 image in, L2 the policy, action
chunk out, L3 socket in, socket out. All times are in milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from trimvla.launch.bench.floor import Machine
from trimvla.launch.result import VerbResult


class MachineFigures(msgspec.Struct, frozen=True):
    """What the machine does at its best, as measured in the same run."""

    gflops: float
    """Operations of a large matrix product [1e9 per second]."""
    gbytes_per_s: float
    """Bytes read from memory, or copied on a GPU [1e9 per second]."""


class BenchRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One policy on one backend, one layer and part; a ratio above 1 is faster than dense."""

    name: str
    """The subject, with the part behind a slash unless that is the total."""
    layer: str
    """L0, L1, L2 or L3."""
    part: str
    """A stage, `preprocess` or `total`."""
    subject: str
    """The policy as it was measured: bundle, and backend behind an @."""
    bundle: str
    """The bundle's name."""
    backend: str
    """What ran it."""
    p50_ms: float
    """Median over the turns [ms]."""
    p99_ms: float
    """99th percentile over the turns [ms]."""
    ratio_to_dense: float | None
    """The dense policy's time on the same backend over this one's, turn by turn: the median."""
    ratio_low: float | None
    """Lower quartile of that ratio."""
    ratio_high: float | None
    """Upper quartile of that ratio."""
    ratio_to_eager_dense: float | None
    """The same against the dense policy in eager torch: the median."""
    ratio_to_peer: float | None = None
    """The same against the first policy that `--peer` names: the median; left out without one."""
    over_l0_ms: float | None
    """What the layer takes beyond the graphs alone [ms]; of totals."""
    floor_ms: float | None
    """No run is faster than this on this machine [ms]; of L0, where it is known."""
    floor_by: str | None
    """What the floor comes from: operations or bytes."""


class CostPart(msgspec.Struct, frozen=True):
    """A part of what the runtime itself costs."""

    step: str
    """Between which layers."""
    part: str
    """What is done there."""
    ms: float
    """Median [ms]."""


class GraphsResult(VerbResult, frozen=True, kw_only=True):
    """What every benchmark of graphs has: its turns and its rows."""

    rounds: int
    """Turns that counted."""
    threads: int
    """Threads of an operator; 0: all cores."""
    machine: MachineFigures
    """This machine at its best."""
    notes: tuple[str, ...]
    """What was left out or is in doubt, and why."""
    rows: tuple[BenchRow, ...]
    """One for every layer, part and policy."""


class BenchResult(GraphsResult, frozen=True, kw_only=True):
    """Of a bundle, layer by layer."""

    bundle: str
    """What was measured."""
    against: str | None
    """The dense bundle that it was compared with."""
    backends: tuple[str, ...]
    """Everything that ran a policy."""
    runs_on: dict[str, dict[str, str]]
    """Stage -> what ran it, of the bundle."""
    also_runs_on: dict[str, dict[str, dict[str, str]]]
    """The same of each policy that `--also` names."""
    picture: str
    """Size of the image, or `policy` for the policy's own."""
    runtime_cost_ms: float
    """L3 minus L0, median [ms]."""
    runtime_cost_interval_ms: tuple[float, float]
    """Where that median lies at 95 % [ms]."""
    own_parts_ms: float
    """Of it, what is work of the runtime's own [ms]."""
    breakdown: tuple[CostPart, ...]
    """Where L3 minus L0 goes."""
    samples: Path | None
    """File with the time of every turn."""


class RandomResult(GraphsResult, frozen=True, kw_only=True):
    """Of a policy of random weights at full size: L0 alone."""

    bundle: Path
    """Where the exported policy lies; it is kept."""
    dtype: str
    """Precision of its graphs."""


class GpuRow(BenchRow, frozen=True, kw_only=True):
    """A row of `gpu-bench`, which also knows sizes."""

    ratio_to_compiled_dense: float | None
    """The same against the dense policy in compiled torch: the median."""
    parameters: int | None = None
    """Of the policy; left out for exported bundles."""
    activation_bytes: int | None = None
    """Most memory beyond the weights, or all that a graph holds [bytes]; left out for bundles."""


class GpuResult(VerbResult, frozen=True, kw_only=True):
    """Of a full-size policy of random weights on a GPU: L0 alone."""

    preset: str
    """Which policy."""
    device: str
    """The GPU's name, or `cpu`."""
    dtype: str
    """Precision of weights and activations."""
    torch: str
    """Its version."""
    date: str
    """Of the run, UTC."""
    rounds: int
    """Turns that counted, fewest of all rows."""
    seconds: float
    """Of the whole run [s]."""
    peak_bytes: int | None
    """Most device memory that torch reserved [bytes]; none on a CPU."""
    machine: MachineFigures
    """The device at its best."""
    notes: tuple[str, ...]
    """What was left out, and why."""
    rows: tuple[GpuRow, ...]
    """One for every part and policy."""


def figures_of(machine: Machine, digits: int = 2) -> MachineFigures:
    """A measurement, rounded: bandwidth to so many digits."""
    return MachineFigures(round(machine.gflops, 1), round(machine.gbytes_per_s, digits))
