"""Stage times as stacked bars, one row a policy, grouped by the way in which it was run.

Groups come from the slowest to the fastest, and in each the dense policy before its plans. Knows
rows of `trimvla gpu-bench`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimvla.launch.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOTAL = "total"
STAGES = ("vision", "language", "action")  # of the policies that are measured
NAME = 34  # letters of a row's name in a line
BAR = 0.6  # of a row's height
ROOM = 1.1  # of the longest bar, for the number behind it
STAGE_COLOURS: dict[str, str] = dict(zip(STAGES, style.COLOURS, strict=False))


@dataclass(frozen=True)
class Row:
    """One row: a bar, or the heading of the bars below it."""

    name: str
    stages: Mapping[str, float]
    """Stage -> median [ms]; empty in a heading."""
    whole: float = 0.0
    """All stages in one go, median [ms]."""
    floor: float | None = None
    """The roofline's time for it [ms]."""


@style.look()
def stage_times_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Stacked stages of every policy, with the whole chunk's median and the roofline's time.

    Args:
        rows: `part` (a stage or "total"), `bundle`, `backend`, `p50_ms` and `floor_ms` each.
        title: what was measured, on what.
    """
    ordered = grouped(rows)
    labels = [style.short(row.name, NAME) for row in ordered]
    figure = style.blank(style.rows_height(labels) + 1.4)
    axes = figure.subplots()
    at = style.name_rows(axes, labels)
    for place, tick, row in zip(at, axes.get_yticklabels(), ordered, strict=True):
        if row.stages:
            _bar(axes, place, row)
        else:
            tick.set_fontweight("bold")
    longest = max(max(row.whole, sum(row.stages.values())) for row in ordered)
    axes.set(xlabel="one action chunk, median [ms]", xlim=(0.0, ROOM * longest))
    style.headline(figure, title)
    style.legend_below(figure, axes, _handles())
    return figure


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows and headings in the order in which they are drawn."""
    times = {(row["backend"], row["bundle"], row["part"]): row["p50_ms"] for row in rows}
    ways: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == TOTAL:
            way = row["backend"]
            name = row["bundle"]
            stages = {stage: times[way, name, stage] for stage in STAGES}
            ways.setdefault(way, []).append(Row(name, stages, row["p50_ms"], row["floor_ms"]))
    found: list[Row] = []
    for way in sorted(ways, key=lambda way: -max(row.whole for row in ways[way])):
        found.append(Row(way, {}))
        found += sorted(ways[way], key=lambda row: (row.name != "dense", -row.whole))
    return found


def _bar(axes: Axes, place: float, row: Row) -> None:
    """One bar, its mark for the whole chunk, the number behind it."""
    left = 0.0
    for stage, took in row.stages.items():
        axes.barh(place, took, left=left, height=BAR, color=STAGE_COLOURS[stage])
        left += took
    axes.plot([row.whole] * 2, [place - 0.42, place + 0.42], color=style.INK, linewidth=1.6)
    if row.floor is not None:
        axes.plot([row.floor], [place], ".", color=style.INK)
    end = (max(left, row.whole), place)
    offset = (4, 0)
    number = f"{row.whole:#.3g}"
    axes.annotate(number, end, offset, textcoords="offset points", va="center", fontsize=8)


def _handles() -> list[Any]:
    """What colours and marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        *(Patch(color=colour, label=stage) for stage, colour in STAGE_COLOURS.items()),
        Line2D([], [], color=style.INK, linewidth=1.6, label="whole chunk in one go"),
        Line2D([], [], color=style.INK, marker=".", linestyle="", label="least time (roofline)"),
    ]
