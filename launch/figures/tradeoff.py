"""Success beside time, one row a plan: what each part of a plan costs and buys, the controls below.

The two axes share their rows, so that a name is written once, beside its row, and on no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimvla.launch.figures import style
from trimvla.launch.figures.rates import NAME, SUCCESS, Rate, Series, draw_rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHUNK = "one action chunk, median [ms]"
ROOM = 1.16  # of the longest bar, for the number behind it


def draw_tradeoff(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw `tradeoff_figure` into a PNG; its path."""
    return style.save(tradeoff_figure(rows), path)


@style.look()
def tradeoff_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Success and time of every row: plans from the slowest to the fastest, then controls likewise.

    Args:
        rows: each with `name`, `ms` (median of one chunk), `success` (0 to 1), `interval` (low,
            high), `control` (bool: a comparison, not part of a plan).
    """
    ordered = in_order(rows)
    labels = style.distinct([row["name"] for row in ordered], NAME)
    figure = style.blank(style.rows_height(labels) + 1.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.1, 1.0))
    at = style.name_rows(left, labels)
    series = [_series(ordered, control) for control in (False, True)]
    draw_rates(left, at, [one for one in series if one.rates])
    left.set(xlabel=SUCCESS, xlim=(-2.0, 102.0))
    left.set_title("success")
    _draw_times(right, at, ordered)
    style.legend_below(figure, left)
    return figure


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Plans before controls, each from the slowest to the fastest."""
    return sorted(rows, key=lambda row: (row["control"], -row["ms"]))


def _series(rows: Sequence[Mapping[str, Any]], control: bool) -> Series:
    """The rates of the plans, or of the controls."""
    rates = {
        place: Rate(row["success"], *row["interval"])
        for place, row in enumerate(rows)
        if row["control"] is control
    }
    if control:
        return Series("control", rates, style.GREY, "X")
    return Series("plan", rates, style.BLUE)


def _draw_times(axes: Axes, at: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    """A bar a row, its number behind it."""
    times = [row["ms"] for row in rows]
    colours = [style.GREY if row["control"] else style.BLUE for row in rows]
    bars = axes.barh(at, times, height=0.5, color=colours)
    axes.bar_label(bars, [f"{ms:.1f}" for ms in times], padding=3, fontsize=8)
    axes.set(xlabel=CHUNK, xlim=(0.0, ROOM * max(times)))
    axes.set_title("time")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(axis="x")
