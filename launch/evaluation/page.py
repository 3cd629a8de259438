"""`trimvla report`: the page on what trimming costs in success and buys in time, from results that
were kept.

Reads `ablation.json` and `ablation_TASK.json`, the benchmark's `trimmed_latency.json`,
`trimmed_success.json` and every result of `trimvla eval` under `evaluation/`; writes pictures, and
the tables of `docs/results/evaluation.md` between their marks. Runs nothing, and makes up nothing:
what is not there has no row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from trimvla.launch.ablation.report import with_times
from trimvla.launch.evaluation.players import estimate
from trimvla.launch.options import Options, Result
from trimvla.launch.outputs import Output
from trimvla.policies.sizes.roofline import find_device
from trimvla.runtime.bundle import manifest as bundle_files
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.statistics import compare

# of the roofline that an engine attains: at best, and eager PyTorch on a large policy
SHARES = (1.0, 0.2)
MARGIN = 0.05
DEVICE_TITLES = {"orin": "Orin", "thor": "Thor"}
Rows = list[tuple[str, ...]]


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


def run(args: Args) -> Result:
    """Write tables and pictures; returns what was found."""
    results = {
        path.stem: read(path) for path in sorted((args.results / "evaluation").glob("*.json"))
    }
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
    for name, rows in tables.items():
        text = insert(text, name, as_markdown(rows))
    folder = args.page.with_suffix("")
    drawn = list(draw(results, folder))
    shown = "\n".join(f"![{title}]({folder.name}/{name})" for name, title in drawn)
    args.page.write_text(insert(text, "pictures", shown or "No pictures yet."))
    redrawn = [path.name for path in redraw(args.results)]
    for name, rows in tables.items():
        args.console().print(f"{name}: {max(0, len(rows) - 1)} rows")
    return {
        "ok": True,
        "page": args.page,
        "results": sorted(results),
        "pictures": [name for name, _ in drawn],
        "redrawn": redrawn,
    }


def read(path: Path) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A result; ConfigError where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a result, got: {error}") from None


def insert(text: str, name: str, table: str) -> str:
    """Put a table between its marks. Raises ConfigError where they are missing."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ConfigError(
            f"expected the marks <!-- {name} --> and <!-- end of {name} --> in the page, got"
            " neither or one"
        )
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def as_markdown(rows: Rows) -> str:
    """The first row is the head."""
    if len(rows) < 2:
        return "No results yet."
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rest))


def rate(row: Mapping[str, Any], key: str = "success_rate") -> str:
    """A rate with its interval and its count."""
    low, high = row["interval"]
    return f"{row[key]:.1%} ({low:.1%} to {high:.1%}) of {row['episodes']}"


def points(paired: Mapping[str, Any] | None) -> tuple[str, str]:
    """Difference with its interval, and McNemar's p."""
    if paired is None:
        return "", ""
    low, high = paired["interval"]
    star = " *" if paired["non_inferior"] else ""
    return (
        f"{100 * paired['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){star}",
        f"{paired['p_value']:.2g}",
    )


PLANS = ("plan", "success", "points to dense, paired", "McNemar's p", "one chunk here")


def tabletop_rows(results: Path) -> Rows:
    """Dense, the whole plan, its parts and the controls; and the shipped trimmed bundle on its own
    600 seeds.
    """
    rows: Rows = [PLANS, *plan_rows(read(results / "ablation.json"))]
    shipped = read(results / "trimmed_success.json")
    sides = {
        role: shipped[f"{role}_successes"] / shipped["episodes"]
        for role in ("candidate", "reference")
    }
    title = f"{shipped['bundle']}, beside dense with {sides['reference']:.1%} on these seeds"
    rows.append((title, f"{sides['candidate']:.1%} of {shipped['episodes']}", *points(shipped), ""))
    return rows


def widowx_rows(results: Path) -> Rows:
    """The same of SimplerEnv's tasks, all of them in one table."""
    rows: Rows = [("task", *PLANS)]
    for path in sorted(results.glob("ablation_*.json")):
        told = read(path)
        rows.extend((told["settings"]["env"], *row) for row in plan_rows(told))
    return rows


def plan_rows(told: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of `trimvla ablate`."""
    for row in told["rows"]:
        times = row["backends"]["onnxruntime"]
        name = f"{row['name']} (control)" if row["control"] else row["name"]
        chunk = f"{times['p50_ms']:.0f} ms ({times['ratio_to_dense']:.2f}x)"
        yield name, rate(row, "success"), *points(row["against_dense"]), chunk


def latency_rows(results: Path) -> Rows:
    """Picture in, chunk out, on this machine."""
    rows: Rows = [("bundle", "threads", "one chunk, median", "p99", "against dense")]
    for run_ in read(results / "trimmed_latency.json"):
        for row in run_["rows"]:
            if row["layer"] == "L2" and row["part"] == "total":
                times = (
                    f"{row['p50_ms']:.0f} ms",
                    f"{row['p99_ms']:.0f} ms",
                    f"{row['ratio_to_dense']:.2f}x",
                )
                rows.append((row["bundle"] + f" ({row['backend']})", str(run_["threads"]), *times))
    return rows


def device_rows(results: Mapping[str, Any], here: Mapping[str, float]) -> Rows:
    """What each bundle of a curve does at the latency of this machine, as measured, and of devices,
    as estimated.

    Its outcomes are those of the curve at as many control periods. The difference is to the first
    bundle, dense, on the same device: each at its own latency, on the same seeds.
    """
    rows: Rows = [
        (
            "task",
            "device",
            "reached",
            "bundle",
            "latency",
            "control periods",
            "success",
            "points to dense, paired",
        )
    ]
    for told in results.values():
        curve = [row for row in told.get("curve", ()) if row["ms"] is not None]
        bundles = tuple(dict.fromkeys(row["bundle"] for row in curve))
        hz = told.get("control_hz", 5.0)
        measured = {bundle: here[bundle] for bundle in bundles if bundle in here}
        rows.extend(_device_rows(curve, hz, (task_of(told), "this machine", "measured"), measured))
        for device, share in product(DEVICE_TITLES, SHARES):
            guessed = dict(guesses(told, bundles, device, share))
            rows.extend(
                _device_rows(
                    curve, hz, (task_of(told), DEVICE_TITLES[device], f"{share:.0%}"), guessed
                )
            )
    return rows


def guesses(
    told: Mapping[str, Any], bundles: Sequence[str], device: str, share: float
) -> Iterator[tuple[str, float]]:
    """Bundle and milliseconds: what was estimated when the curve was played, or from a bundle that
    is shipped.
    """
    title = find_device(device).title
    shipped = bundle_files.shipped()
    kept = {
        (row["bundle"], row["device"]["title"], row["attained"]): row["ms"]
        for row in told.get("estimates", ())
    }
    for bundle in bundles:
        if (bundle, title, share) in kept:
            yield bundle, kept[bundle, title, share]
        elif bundle in shipped:
            yield bundle, estimate(bundle, device, share)["ms"]


def task_of(told: Mapping[str, Any]) -> str:
    """The environment; the first seed where others than its official episodes were played; a look
    at every step.
    """
    env = told.get("env", "")
    seeds = f", seeds from {told['seed']}" if ":" in env and told["seed"] else ""
    looks = ", a look at every step" if told.get("execute") == 1 else ""
    return f"{env}{seeds}{looks}"


def _device_rows(
    curve: Sequence[Mapping[str, Any]],
    hz: float,
    device: tuple[str, ...],
    latencies: Mapping[str, float],
) -> Iterator[tuple[str, ...]]:
    dense: Mapping[str, Any] | None = None
    for bundle, ms in latencies.items():
        periods = periods_of(ms, hz)
        found = next(
            (r for r in curve if r["bundle"] == bundle and periods_of(r["ms"], hz) == periods), None
        )
        if found is None:
            continue
        dense = dense or (found if found["against_top"] is None else None)
        pair = (
            None if dense is None or found is dense else [outcomes(row) for row in (found, dense)]
        )
        difference = "" if pair is None else points(asdict(compare(*pair, margin=MARGIN)))[0]
        yield *device, bundle, f"{ms:.0f} ms", str(periods), rate(found), difference


def measured_here(results: Path) -> dict[str, float]:
    """Bundle -> milliseconds of a chunk on this machine, one thread, median."""
    first = read(results / "trimmed_latency.json")[0]["rows"]
    whole = [row for row in first if row["layer"] == "L2" and row["part"] == "total"]
    return {row["bundle"]: row["p50_ms"] for row in whole if row["backend"] == "onnxruntime"}


def outcomes(row: Mapping[str, Any]) -> list[int]:
    """By rising seed."""
    return [int(letter) for letter in row["outcomes"]]


def periods_of(ms: float, hz: float) -> int:
    """Control periods that a constant latency costs: pictures exist at ticks only."""
    return math.ceil(ms * hz / 1000)


def task_rows(results: Mapping[str, Any]) -> Rows:
    """Every task and bundle that was evaluated, in its first condition."""
    rows: Rows = [
        ("task", "bundle", "latency", "success", "points to the reference, paired", "McNemar's p")
    ]
    for told in results.values():
        against = told.get("against")
        if "curve" in told:
            for row in told["curve"]:
                latency = "" if row["ms"] is None else f"{row['ms']:.0f} ms"
                rows.append(
                    (task_of(told), row["bundle"], latency, rate(row), *points(row["against_top"]))
                )
            continue
        rows.append(
            (task_of(told), told["bundle"], "", rate(told), *points(told.get("comparison")))
        )
        if against is not None:
            rows.append(
                (task_of(told), f"{against['bundle']} (reference)", "", rate(against), "", "")
            )
    return rows


def redraw(results: Path) -> Iterator[Path]:
    """Draw the pictures beside kept ablations and GPU benchmarks anew; their paths."""
    from trimvla.launch.bench import gpu_report
    from trimvla.launch.figures.tradeoff import draw_tradeoff

    for path in sorted(results.glob("ablation*.json")):
        yield draw_tradeoff(with_times(read(path)["rows"]), path.with_suffix(".png"))
    for path in sorted(results.glob("gpu-*.json")):
        yield gpu_report.draw(read(path), path.with_suffix(".png"))


def draw(results: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """Pictures of a result, as file and title: against latency and along the ladder, or the kinds
    of task.
    """
    from trimvla.launch.evaluation.figures import draw_curve, draw_rungs, draw_verbs

    folder.mkdir(parents=True, exist_ok=True)
    for name, told in results.items():
        if "curve" not in told:
            title = f"{told['bundle']} on {told['env']}"
            draw_verbs(told["by_verb"], folder / f"{name}.png", title)
            yield f"{name}.png", title
            continue
        title = f"success on {told['env']}, {told['episodes']} episodes a point"
        draw_curve(told["curve"], folder / f"{name}.png", title)
        yield f"{name}.png", title
        draw_rungs(told["curve"], folder / f"{name}-rungs.png", title)
        yield f"{name}-rungs.png", title
