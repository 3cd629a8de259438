"""Success rates with their intervals: rows of names, or lines against a number. Needs matplotlib.

Rows are written beside the axis, one under the other, so that no name lies on another however many
there are. Knows rates and names; knows no policy and no result file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimvla.launch.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUCCESS = "success [%], with 95 % interval"
NAME = 34  # letters of a row's name in a line
SPREAD = 0.5  # of a row's height: over it the series of one row are spread
MARGIN = 0.05  # of the span of places, on either side of them
SIDE_BY_SIDE = 3.5  # points between the error bars of series that share a place


@dataclass(frozen=True)
class Rate:
    """A success rate and its interval, each from 0 to 1."""

    rate: float
    low: float
    high: float

    def percent(self) -> tuple[float, float, float]:
        """The rate, and how far the interval reaches below and above it [points]."""
        below = max(0.0, self.rate - self.low)
        above = max(0.0, self.high - self.rate)
        return 100 * self.rate, 100 * below, 100 * above


@dataclass(frozen=True)
class Series:
    """What one colour stands for: its rates by the place where they belong."""

    label: str
    rates: Mapping[int, Rate]
    """Row -> rate."""
    colour: str
    marker: str = "o"


@dataclass(frozen=True)
class Line:
    """Rates against a number, by rising number."""

    label: str
    points: Sequence[tuple[float, Rate]]


@style.look()
def rate_rows(names: Sequence[str], series: Sequence[Series], title: str) -> Figure:
    """One row a name; a mark and its interval a series."""
    labels = style.distinct(names, NAME)
    figure = style.blank(style.rows_height(labels) * _crowd(series) + 1.0)
    axes = figure.subplots()
    draw_rates(axes, style.name_rows(axes, labels), series)
    axes.set(xlabel=SUCCESS, xlim=(-2.0, 102.0))
    style.headline(figure, title)
    if len(series) > 1:
        style.legend_below(figure, axes)
    return figure


def _crowd(series: Sequence[Series]) -> float:
    """How much higher rows are where many series share them."""
    return max(1.0, 0.4 * len(series))


def draw_rates(axes: Axes, at: Sequence[float], series: Sequence[Series]) -> None:
    """Marks with intervals in rows that lie at these places; series of one row a little apart."""
    for one in series:
        for row, each in one.rates.items():
            sharing = [other for other in series if row in other.rates]
            shift = SPREAD * ((sharing.index(one) + 0.5) / len(sharing) - 0.5)
            rate, below, above = each.percent()
            axes.errorbar(
                [rate],
                [at[row] + shift],
                xerr=[[below], [above]],
                fmt=one.marker,
                color=one.colour,
                markersize=5,
                capsize=3,
                label=one.label if row == min(one.rates) else None,
            )


@style.look()
def rate_lines(lines: Sequence[Line], xlabel: str, title: str) -> Figure:
    """A line each, with intervals; those at the same place are drawn side by side."""
    from matplotlib.transforms import ScaledTranslation

    figure = style.blank(4.0)
    axes = figure.subplots()
    for number, line in enumerate(lines):
        triples = [each.percent() for _, each in line.points]
        points = SIDE_BY_SIDE * (number - (len(lines) - 1) / 2)
        aside = ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)
        axes.errorbar(
            [place for place, _ in line.points],
            [rate for rate, _, _ in triples],
            yerr=[[below for _, below, _ in triples], [above for _, _, above in triples]],
            marker=style.marker(number),
            color=style.colour(number),
            markersize=5,
            capsize=3,
            label=line.label,
            transform=axes.transData + aside,
        )
    every = [place for line in lines for place, _ in line.points]
    margin = MARGIN * (max(every) - min(every)) or 1.0
    axes.set(xlabel=xlabel, xlim=(min(every) - margin, max(every) + margin))
    axes.set(ylabel=SUCCESS, ylim=(-2.0, 102.0))
    style.headline(figure, title)
    axes.grid()
    style.legend_below(figure, axes)
    return figure
