"""Pictures of evaluations: success against latency, a bundle a line; success by kind of task.

Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from trimvla.launch.options import Result
from trimvla.sim.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curve(rows: Sequence[Result], path: Path, title: str) -> None:
    """Success with its interval against the latency [ms]; against the bundles where there is no
    latency.
    """
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    if all(row["ms"] is None for row in rows):
        _errorbars(axes, range(len(rows)), rows, None)
        axes.set_xticks(
            range(len(rows)), [f"{row['bundle']}\n{row['latency'] or ''}" for row in rows]
        )
    else:
        _lines(axes, rows)
    axes.set(ylabel="success (95 % interval)", ylim=(0, 1), title=title)
    _finish(figure, axes, path)


def _lines(axes: Axes, rows: Sequence[Result]) -> None:
    for bundle in dict.fromkeys(row["bundle"] for row in rows):
        own = sorted(
            (row for row in rows if row["bundle"] == bundle and row["ms"] is not None),
            key=lambda row: row["ms"],
        )
        _errorbars(axes, [row["ms"] for row in own], own, bundle)
    axes.set_xlabel("latency charged to the simulated clock [ms], mean")
    axes.legend()


def _errorbars(
    axes: Axes, places: Sequence[float], rows: Sequence[Result], label: str | None
) -> None:
    rates = [row["success_rate"] for row in rows]
    below = [max(0.0, row["success_rate"] - row["interval"][0]) for row in rows]
    above = [max(0.0, row["interval"][1] - row["success_rate"]) for row in rows]
    axes.errorbar(
        list(places),
        rates,
        yerr=[below, above],
        marker="o",
        capsize=3,
        label=label,
        linestyle="-" if label else "",
    )


def draw_rungs(rows: Sequence[Result], path: Path, title: str) -> None:
    """Success along the ladder, one line a latency."""
    figure, axes = pyplot.subplots(figsize=(6, 4.2))
    bundles = list(dict.fromkeys(row["bundle"] for row in rows))
    for latency in dict.fromkeys(row["latency"] for row in rows):
        own = [row for row in rows if row["latency"] == latency]
        label = (
            "the simulator waits"
            if latency is None
            else f"{latency} ms"
            if latency.isdigit()
            else latency
        )
        _errorbars(axes, [bundles.index(row["bundle"]) for row in own], own, label)
    axes.set_xticks(range(len(bundles)), [Path(bundle).name for bundle in bundles])
    axes.set(
        ylabel="success (95 % interval)", ylim=(0, 1), title=title, xlim=(-0.3, len(bundles) - 0.7)
    )
    axes.legend()
    _finish(figure, axes, path)


def draw_verbs(by_verb: Mapping[str, Sequence[int]], path: Path, title: str) -> None:
    """One bar a kind of task."""
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for place, (won, of) in enumerate(by_verb.values()):
        low, high = wilson_interval(won, of)
        rate = won / of
        axes.bar(place, rate, color="tab:blue", alpha=0.6)
        axes.errorbar(
            place,
            rate,
            yerr=[[max(0.0, rate - low)], [max(0.0, high - rate)]],
            color="black",
            capsize=4,
        )
    labels = [f"{verb}\n{won} of {of}" for verb, (won, of) in by_verb.items()]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="success (95 % interval)", ylim=(0, 1), title=title)
    _finish(figure, axes, path)


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
