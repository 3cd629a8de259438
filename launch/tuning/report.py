"""The outcome of a search: its points as a result, a table for people, a picture, and a TOML whose
policy has them as rungs.

Knows times, outcomes and plans; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from trimvla.launch import tables
from trimvla.launch.ablation.report import is_whole, timing
from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.turns import Samples, Subject
from trimvla.launch.system.setup.sections import CONFIGS
from trimvla.launch.tuning.points import Point
from trimvla.launch.tuning.prices import Measured, errors, rank_correlation
from trimvla.launch.tuning.results import PriceCheck, TunedPoint
from trimvla.launch.tuning.search import Candidate
from trimvla.launch.tuning.work import DENSE
from trimvla.policies.families import family_of, parse_config
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan
from trimvla.sim.evaluation.statistics import Comparison, compare
from trimvla.sim.evaluation.success import Outcome, success_of

RUNGS = 4  # a ladder holds all its bundles in memory


def points_of(
    made: Mapping[str, Path],
    candidates: Mapping[str, Candidate],
    meets: Mapping[Point, tuple[str, ...]],
    times: tuple[Samples, Sequence[Subject]],
    played: Mapping[str, Sequence[Outcome]],
    *,
    margin: float,
) -> list[TunedPoint]:
    """The front, the dense bundle first.

    Args:
        made: name -> bundle, dense first.
        candidates: name -> what was known of it before.
        meets: point -> the budgets that it was chosen for.
        times: of all of them, in turns.
        played: name -> outcomes; empty where nothing was played.
        margin: of non-inferiority.
    """
    rows = benchmark.rows(times[1], times[0], {})
    found: list[TunedPoint] = []
    for name, bundle in made.items():
        one = candidates[name]
        row = next(row for row in rows if row.bundle == name and is_whole(row))
        success = success_fields(name, played, margin)
        found.append(
            TunedPoint(
                name=name,
                bundle=bundle,
                plan=bundle.with_name(f"{bundle.name}.json"),
                price_ms=one.price_ms,
                timing=timing(row),
                distance=one.distance,
                flops_ratio=flops_ratio(bundle),
                meets=meets.get(one.point, ()),
                success=success.success,
                interval=success.interval,
                against_dense=success.against_dense,
            )
        )
    return found


def flops_ratio(bundle: Path) -> float:
    """Of the dense policy's operations."""
    manifest = bundles.load(bundle)
    cfg = parse_config(manifest.policy)
    cost = family_of(cfg).cost
    return cost(cfg, manifest.plan).flops / cost(cfg, Plan()).flops


@dataclass(frozen=True)
class Played:
    """A point's success, as `TunedPoint` has it."""

    success: float | None = None
    interval: tuple[float, float] | None = None
    against_dense: Comparison | None = None


def success_fields(name: str, played: Mapping[str, Sequence[Outcome]], margin: float) -> Played:
    """Success of a point, and paired with the dense bundle; nothing where nothing was played."""
    if not played:
        return Played()
    success = success_of(played[name])
    paired = None
    if name != DENSE:
        reference = success_of(played[DENSE])
        paired = compare(success.outcomes, reference.outcomes, margin=margin)
    return Played(success.success_rate, success.interval, paired)


def check_prices(measured: Sequence[Measured], points: Sequence[TunedPoint]) -> PriceCheck:
    """How well prices fit."""
    off = [abs(error) for error in errors(measured)]
    return PriceCheck(
        bundles=len(measured),
        median_error=median(off) if off else None,
        worst_error=max(off) if off else None,
        rank_correlation=rank_correlation(
            [point.price_ms for point in points], [point.timing.p50_ms for point in points]
        ),
    )


def distance_correlation(points: Sequence[TunedPoint]) -> float | None:
    """Spearman's of distance and success; a good proxy's is near -1."""
    known = [point for point in points if point.success is not None]
    return rank_correlation(
        [point.distance for point in known], [point.success or 0.0 for point in known]
    )


def as_table(points: Sequence[TunedPoint]) -> Table:
    """For people."""
    title = "ms: one action chunk, median; distance: of action chunks on frames; * not inferior"
    columns = ("point", "ms", "distance", "success", "to dense, paired", "for")
    table = Table(*columns, title=title, title_justify="left")
    for point in points:
        table.add_row(
            point.name,
            tables.duration(point.timing.p50_ms, point.timing.ratio_to_dense),
            f"{point.distance:.3g}",
            "" if point.success is None else f"{point.success:.1%}",
            tables.points(point.against_dense),
            ", ".join(point.meets),
        )
    return table


def rungs_of(points: Sequence[TunedPoint]) -> list[TunedPoint]:
    """Points for a ladder: dense, and of those that are not shown to be worse a few in equal
    steps.
    """
    good = [
        point for point in points if point.against_dense is None or point.against_dense.non_inferior
    ]
    if len(good) <= RUNGS:
        return good
    step = (len(good) - 1) / (RUNGS - 1)
    return [good[round(index * step)] for index in range(RUNGS)]


def write_system(points: Sequence[TunedPoint], path: Path) -> Path:
    """The shipped robot.toml with the points as rungs; its path."""
    names = ", ".join(f'"{point.bundle.resolve()}"' for point in rungs_of(points))
    lines = (CONFIGS / "robot.toml").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("bundle ="))
    lines[place] = f"rungs = [{names}]"
    slowest = max(point.timing.p99_ms for point in rungs_of(points)) / 1e3
    lines.insert(place + 1, f"ladder.deadline_s = {1.25 * slowest:.3f}")
    path.write_text("\n".join(lines) + "\n")
    return path
