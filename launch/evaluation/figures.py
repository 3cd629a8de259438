"""Pictures of evaluations: success against latency, along a ladder of bundles, by kind of task.

Turns results of `trimvla eval` into the rows and lines that `figures.rates` draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimvla.launch.evaluation.results import CurveRow
from trimvla.launch.figures import style
from trimvla.launch.figures.rates import Line, Rate, Series, rate_lines, rate_rows
from trimvla.policies.sizes.roofline import find_device
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATENCY = "latency charged to the simulated clock, mean [ms]"


def draw_curve(rows: Sequence[CurveRow], path: Path, title: str) -> None:
    """Draw `curve_figure` into a PNG."""
    style.save(curve_figure(rows, title), path)


def draw_rungs(rows: Sequence[CurveRow], path: Path, title: str) -> None:
    """Draw `rungs_figure` into a PNG."""
    style.save(rungs_figure(rows, title), path)


def draw_verbs(by_verb: Mapping[str, Sequence[int]], path: Path, title: str) -> None:
    """Draw `verbs_figure` into a PNG."""
    style.save(verbs_figure(by_verb, title), path)


def curve_figure(rows: Sequence[CurveRow], title: str) -> Figure:
    """Success against the latency, a bundle a line; a row each where no latency was charged."""
    late = [row for row in rows if row.ms is not None]
    names = short_names([row.bundle for row in rows])
    if not late:
        labels = [f"{names[row.bundle]} {row.latency or ''}".strip() for row in rows]
        places = {place: rate_of(row) for place, row in enumerate(rows)}
        return rate_rows(labels, [Series("success", places, style.BLUE)], title)
    lines: list[Line] = []
    for bundle, name in names.items():
        points = [(row.ms or 0.0, rate_of(row)) for row in late if row.bundle == bundle]
        lines.append(Line(name, sorted(points, key=lambda point: point[0])))
    return rate_lines([line for line in lines if line.points], LATENCY, title)


def rungs_figure(rows: Sequence[CurveRow], title: str) -> Figure:
    """Success along the ladder: a bundle a row, a latency a colour."""
    names = short_names([row.bundle for row in rows])
    order = list(names)
    series: list[Series] = []
    for number, latency in enumerate(dict.fromkeys(row.latency for row in rows)):
        own = [row for row in rows if row.latency == latency]
        rates = {order.index(row.bundle): rate_of(row) for row in own}
        colour = style.colour(number)
        series.append(Series(latency_words(latency), rates, colour, style.marker(number)))
    return rate_rows(list(names.values()), series, title)


def verbs_figure(by_verb: Mapping[str, Sequence[int]], title: str) -> Figure:
    """One row a kind of task, with what succeeded of how many."""
    names = [f"{verb}: {won} of {of}" for verb, (won, of) in by_verb.items()]
    rates = {
        place: Rate(won / of, *wilson_interval(won, of))
        for place, (won, of) in enumerate(by_verb.values())
    }
    return rate_rows(names, [Series("success", rates, style.BLUE)], title)


def rate_of(row: CurveRow) -> Rate:
    """A result's success rate and its interval."""
    low, high = row.interval
    return Rate(row.success_rate, low, high)


def short_names(bundles: Sequence[str]) -> dict[str, str]:
    """Bundle -> its folder's name, or its whole path where two folders are called alike."""
    every = list(dict.fromkeys(bundles))
    last = [Path(bundle).name for bundle in every]
    if len(set(last)) < len(last):
        return dict(zip(every, every, strict=True))
    return dict(zip(every, last, strict=True))


def latency_words(latency: str | None) -> str:
    """A condition in words: "the simulator waits", "200 ms", "orin at 20 % of its roofline"."""
    if latency is None:
        return "the simulator waits"
    if latency.isdigit():
        return f"{latency} ms"
    device, _, share = latency.partition(":")
    try:
        find_device(device)
        return f"{device} at {100 * float(share or 1):.0f} % of its roofline"
    except (ConfigError, ValueError):
        return latency
