"""`trimvla bench`: where the time of one action chunk goes, layer by layer, beside the dense policy
and beside torch.

Wires the parts: bundles and their torch twins (`bench_subjects`) take turns (`export.benchmark`),
each stage gets its floor (`export.floor`), and the policy's real process answers over its sockets
(`bench_socket`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.measure import Measured, measure
from trimvla.launch.bench.options import BenchArgs as Args
from trimvla.launch.bench.report import (
    as_cost,
    as_table,
    breakdown,
    doubts,
    explain,
    own_parts,
    write_samples,
)
from trimvla.launch.bench.results import BenchResult, RandomResult, figures_of
from trimvla.launch.bench.turns import Cell
from trimvla.launch.system.signals import terminate_as_interrupt


def run(args: Args) -> BenchResult | RandomResult:
    """Measure; the rows, and a table for people."""
    terminate_as_interrupt()
    if args.random_weights:
        return full_size(args)
    with ExitStack() as stack:
        measured = measure(args, stack)
    if args.samples is not None:
        write_samples(measured.samples, args.samples)
    result = summarise(args, measured)
    console = args.console()
    console.print(as_table(result))
    console.print(as_cost(result))
    for line in explain(result):
        console.print(line)
    return result


def full_size(args: Args) -> RandomResult:
    """Random weights: another export under every name, measured stage by stage."""
    from trimvla.launch.bench.random_weights import PLACE, Turns, run_random
    from trimvla.launch.exporting.options import ExportArgs

    options = ExportArgs(
        json=args.json,
        out=PLACE / "-".join((args.preset, *args.short_names, args.dtype)),
        preset=args.preset,
        random_weights=True,
        dtype=args.dtype,
        **args.kept,
        tokens=args.tokens,
    )
    return run_random(options, Turns(args.backend, args.threads, args.rounds, args.warmup))


def layers(cells: Mapping[Cell, object]) -> set[str]:
    """The layers that were measured of a subject."""
    return {layer for layer, _ in cells}


def summarise(args: Args, measured: Measured) -> BenchResult:
    """Everything that was measured."""
    rows = benchmark.rows(measured.subjects, measured.samples, measured.floors)
    whole = (
        one for one in reversed(measured.subjects) if "L3" in layers(measured.samples[one.name])
    )
    cells = measured.samples[next(whole).name]
    costs = np.subtract(cells["L3", benchmark.TOTAL], cells["L0", benchmark.TOTAL]).tolist()
    low, high = benchmark.median_interval(costs)
    parts = breakdown(cells, measured.parts)
    return BenchResult(
        ok=True,
        bundle=args.bundle,
        against=args.against,
        rounds=args.rounds,
        threads=args.threads,
        backends=tuple(dict.fromkeys(subject.backend for subject in measured.subjects)),
        runs_on=measured.runs_on,
        also_runs_on=measured.also_runs_on,
        machine=figures_of(measured.machine),
        picture=args.picture,
        runtime_cost_ms=benchmark.over_l0(cells, "L3"),
        runtime_cost_interval_ms=(round(low, 3), round(high, 3)),
        own_parts_ms=own_parts(parts),
        breakdown=parts,
        notes=(*measured.notes, *doubts(rows, measured.resent)),
        samples=args.samples,
        rows=rows,
    )
