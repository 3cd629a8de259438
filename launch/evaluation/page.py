"""`trimvla report`: the page on what trimming costs in success and buys in time, from kept results.

Reads `ablation.json` and `ablation_TASK.json`, the benchmark's `trimmed_latency.json`,
`trimmed_success.json` and every result of `trimvla eval` under `evaluation/`; writes pictures, and
the tables of `docs/results/evaluation.md` between their marks. Runs nothing, and makes up nothing:
what is not there has no row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from trimvla.launch.ablation.report import with_times
from trimvla.launch.bench.results import GpuResult
from trimvla.launch.evaluation.kept import (
    KeptAblation,
    KeptBench,
    KeptEvaluation,
    KeptPairs,
    read,
)
from trimvla.launch.evaluation.policies import estimate
from trimvla.launch.evaluation.results import CurveRow
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.result import VerbResult
from trimvla.launch.tables import Row, as_markdown, duration, insert, p_value, points, rate
from trimvla.policies.sizes.roofline import find_device
from trimvla.runtime.bundle import manifest as bundle_files
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.statistics import Comparison, compare

SHARES = (1.0, 0.2)  # of the roofline that an engine attains: at best, and eager PyTorch
MARGIN = 0.05
DEVICE_TITLES = {"orin": "Orin", "thor": "Thor"}
Rows = list[Row]


@dataclass(frozen=True)
class Args(Options):
    """Tables and pictures of the evaluation's page, from the results under `benchmarks`."""

    results: Path = Path("benchmarks")
    """Where results lie; pictures beside them, of ablations and GPUs, are drawn anew."""

    page: Path = Path("docs/results/evaluation.md")
    """The page; its tables stand between marks `<!-- NAME -->` and `<!-- end of NAME -->`."""

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (
            Output("--page", self.page),
            Output("--page", self.page.with_suffix(""), folder=True),
            Output("--results", self.results, folder=True),
        )


class ReportResult(VerbResult, frozen=True, kw_only=True):
    """What went into the page."""

    page: Path
    """The page."""
    results: list[str]
    """Names of the evaluations that were found."""
    pictures: list[str]
    """Files that were drawn for the page."""
    redrawn: list[str]
    """Files that were drawn anew beside the results."""


def run(args: Args) -> ReportResult:
    """Write tables and pictures; returns what was found."""
    files = sorted((args.results / "evaluation").glob("*.json"))
    results = {path.stem: read(path, KeptEvaluation) for path in files}
    tables = {
        "tabletop": tabletop_rows(args.results),
        "widowx": widowx_rows(args.results),
        "latency": latency_rows(args.results),
        "devices": device_rows(results, measured_here(args.results)),
        "tasks": task_rows(results),
    }
    try:
        text = args.page.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{args.page}: expected the page for --page, got: {error}") from None
    for name, (head, *rows) in tables.items():
        text = insert(text, name, as_markdown(head, rows))
    folder = args.page.with_suffix("")
    drawn = list(draw(results, folder))
    shown = "\n".join(f"![{title}]({folder.name}/{name})" for name, title in drawn)
    args.page.write_text(insert(text, "pictures", shown or "No pictures yet."))
    redrawn = [path.name for path in redraw(args.results)]
    for name, rows in tables.items():
        args.console().print(f"{name}: {max(0, len(rows) - 1)} rows")
    return ReportResult(
        ok=True,
        page=args.page,
        results=sorted(results),
        pictures=[name for name, _ in drawn],
        redrawn=redrawn,
    )


PLANS = ("plan", "success", "points to dense, paired", "McNemar's p", "one chunk here")


def tabletop_rows(results: Path) -> Rows:
    """Dense, the whole plan, its parts and the controls; and the shipped trimmed bundle's 600
    seeds."""
    rows: Rows = [PLANS, *plan_rows(read(results / "ablation.json", KeptAblation))]
    shipped = read(results / "trimmed_success.json", KeptPairs)
    candidate = shipped.candidate_successes / shipped.episodes
    reference = shipped.reference_successes / shipped.episodes
    title = f"{shipped.bundle}, beside dense with {reference:.1%} on these seeds"
    success = f"{candidate:.1%} of {shipped.episodes}"
    rows.append((title, success, points(shipped), p_value(shipped), ""))
    return rows


def widowx_rows(results: Path) -> Rows:
    """The same of SimplerEnv's tasks, all of them in one table."""
    rows: Rows = [("task", *PLANS)]
    for path in sorted(results.glob("ablation_*.json")):
        kept = read(path, KeptAblation)
        rows.extend((kept.settings.env, *row) for row in plan_rows(kept))
    return rows


def plan_rows(kept: KeptAblation) -> Iterator[Row]:
    """The rows of `trimvla ablate`."""
    for row in kept.rows:
        times = row.backends["onnxruntime"]
        name = f"{row.name} (control)" if row.control else row.name
        success = rate(row.success, row.interval, row.episodes)
        chunk = duration(times.p50_ms, times.ratio_to_dense, digits=0)
        yield name, success, points(row.against_dense), p_value(row.against_dense), chunk


def latency_rows(results: Path) -> Rows:
    """Image in, chunk out, on this machine."""
    rows: Rows = [("bundle", "threads", "one chunk, median", "p99", "against dense")]
    for kept in read(results / "trimmed_latency.json", list[KeptBench]):
        for row in kept.rows:
            if row.is_whole:
                bundle = f"{row.bundle} ({row.backend})"
                times = (f"{row.p50_ms:.0f} ms", f"{row.p99_ms:.0f} ms")
                rows.append((bundle, str(kept.threads), *times, f"{row.ratio_to_dense:.2f}x"))
    return rows


def device_rows(results: Mapping[str, KeptEvaluation], here: Mapping[str, float]) -> Rows:
    """Each bundle of a curve at this machine's latency, measured, and at devices', estimated.

    Its outcomes are those of the curve at as many control periods. The difference is to the first
    bundle, dense, on the same device: each at its own latency, on the same seeds.
    """
    figures = ("latency", "control periods", "success", "points to dense, paired")
    rows: Rows = [("task", "device", "reached", "bundle", *figures)]
    for kept in results.values():
        curve = [row for row in kept.curve or () if row.ms is not None]
        bundles = tuple(dict.fromkeys(row.bundle for row in curve))
        task = task_of(kept)
        measured = {bundle: here[bundle] for bundle in bundles if bundle in here}
        machine = (task, "this machine", "measured")
        rows.extend(_device_rows(curve, kept.control_hz, machine, measured))
        for device, share in product(DEVICE_TITLES, SHARES):
            guessed = dict(guesses(kept, bundles, device, share))
            place = (task, DEVICE_TITLES[device], f"{share:.0%}")
            rows.extend(_device_rows(curve, kept.control_hz, place, guessed))
    return rows


def guesses(
    kept: KeptEvaluation, bundles: Sequence[str], device: str, share: float
) -> Iterator[tuple[str, float]]:
    """Bundle and milliseconds: estimated when the curve was played, or from a shipped bundle."""
    title = find_device(device).title
    shipped = bundle_files.shipped()
    known = {(row.bundle, row.device.title, row.attained): row.ms for row in kept.estimates}
    for bundle in bundles:
        if (bundle, title, share) in known:
            yield bundle, known[bundle, title, share]
        elif bundle in shipped:
            yield bundle, estimate(bundle, device, share).ms


def task_of(kept: KeptEvaluation) -> str:
    """The environment; the first seed where it is not the official one; a look at every step."""
    seeds = f", seeds from {kept.seed}" if ":" in kept.env and kept.seed else ""
    looks = ", a look at every step" if kept.execute == 1 else ""
    return f"{kept.env}{seeds}{looks}"


def _device_rows(
    curve: Sequence[CurveRow], hz: float, device: Row, latencies: Mapping[str, float]
) -> Iterator[Row]:
    dense: CurveRow | None = None
    for bundle, ms in latencies.items():
        periods = periods_of(ms, hz)
        own = (row for row in curve if row.bundle == bundle)
        found = next((row for row in own if periods_of(row.ms or 0.0, hz) == periods), None)
        if found is None:
            continue
        dense = dense or (found if found.against_top is None else None)
        success = rate(found.success_rate, found.interval, found.episodes)
        difference = "" if dense is None or found is dense else points(pair_of(found, dense))
        yield *device, bundle, f"{ms:.0f} ms", str(periods), success, difference


def pair_of(row: CurveRow, dense: CurveRow) -> Comparison:
    """A bundle against dense, each at its own latency."""
    return compare(outcomes(row), outcomes(dense), margin=MARGIN)


def measured_here(results: Path) -> dict[str, float]:
    """Bundle -> milliseconds of a chunk on this machine, one thread, median."""
    first = read(results / "trimmed_latency.json", list[KeptBench])[0].rows
    own = [row for row in first if row.is_whole and row.backend == "onnxruntime"]
    return {row.bundle: row.p50_ms for row in own}


def outcomes(row: CurveRow) -> list[int]:
    """By rising seed."""
    return [int(letter) for letter in row.outcomes]


def periods_of(ms: float, hz: float) -> int:
    """Control periods that a constant latency costs: images exist at ticks only."""
    return math.ceil(ms * hz / 1000)


def task_rows(results: Mapping[str, KeptEvaluation]) -> Rows:
    """Every task and bundle that was evaluated, in its first condition."""
    paired = ("points to the reference, paired", "McNemar's p")
    rows: Rows = [("task", "bundle", "latency", "success", *paired)]
    for kept in results.values():
        rows.extend((task_of(kept), *row) for row in _task_rows(kept))
    return rows


def _task_rows(kept: KeptEvaluation) -> Iterator[Row]:
    """Of one evaluation: its curve, or the bundle and its reference."""
    if kept.curve is not None:
        for row in kept.curve:
            latency = "" if row.ms is None else f"{row.ms:.0f} ms"
            success = rate(row.success_rate, row.interval, row.episodes)
            top = row.against_top
            yield row.bundle, latency, success, points(top), p_value(top)
        return
    success = rate(kept.success_rate, kept.interval, kept.episodes)
    yield kept.bundle, "", success, points(kept.comparison), p_value(kept.comparison)
    if kept.against is not None:
        side = kept.against
        success = rate(side.success_rate, side.interval, side.episodes)
        yield f"{side.bundle} (reference)", "", success, "", ""


def redraw(results: Path) -> Iterator[Path]:
    """Draw the pictures beside kept ablations and GPU benchmarks anew; their paths."""
    from trimvla.launch.bench import gpu_report
    from trimvla.launch.figures.tradeoff import draw_tradeoff

    for path in sorted(results.glob("ablation*.json")):
        rows = with_times(read(path, KeptAblation).rows)
        yield draw_tradeoff(rows, path.with_suffix(".png"))
    for path in sorted(results.glob("gpu-*.json")):
        yield gpu_report.draw(read(path, GpuResult), path.with_suffix(".png"))


def draw(results: Mapping[str, KeptEvaluation], folder: Path) -> Iterator[tuple[str, str]]:
    """Pictures, as file and title: against latency and along the ladder, or the kinds of task."""
    from trimvla.launch.evaluation.figures import draw_curve, draw_rungs, draw_verbs

    folder.mkdir(parents=True, exist_ok=True)
    for name, kept in results.items():
        if kept.curve is None:
            title = f"{kept.bundle} on {kept.env}"
            draw_verbs(kept.by_verb, folder / f"{name}.png", title)
            yield f"{name}.png", title
            continue
        title = f"success on {kept.env}, {kept.episodes} episodes a point"
        draw_curve(kept.curve, folder / f"{name}.png", title)
        yield f"{name}.png", title
        draw_rungs(kept.curve, folder / f"{name}-rungs.png", title)
        yield f"{name}-rungs.png", title
