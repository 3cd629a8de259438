"""The look that all pictures share, how long names are shortened, and how a picture is written.

A picture is a figure of matplotlib's with a constrained layout, whose height follows what it has to
show: a row has the same height whether there are two or forty. Knows no data.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

DPI = 120
WIDTH = 9.0
"""Of a picture [inch]."""
ROW = 0.3
"""Height of a row with a name of one line [inch]."""
LINE = 0.19
"""Height of one more line of a name [inch]."""

HEADLINE = 90  # letters in a line
LETTERS_AN_INCH = 13.5
HANDLE = 7  # letters: the mark before an entry of a legend, and the space around it
BORDER = 0.07
"""Around each axes and along the border [inch]."""

BLUE = "#1f6fb4"
GREY = "#8a8a8a"
PALE = "#d3d3d3"
INK = "#222222"
COLOURS = (BLUE, "#d9722b", "#2f9e57", "#8e5bb5", "#b8860b", "#1aa3a3", "#c2478c", "#5a5a5a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

LOOK: dict[RcKeyType, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names are the user's: a dollar in one is a dollar
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in the shared look; as a decorator or as a block. Needs matplotlib."""
    import matplotlib

    with matplotlib.rc_context(LOOK):
        yield


def blank(height: float, width: float = WIDTH) -> Figure:
    """An empty figure without a window [inch]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=BORDER, h_pad=BORDER)
    return figure


def show_powers(axes: Axes) -> None:
    """Scale the y axis by powers, with plain numbers at 1, 2 and 5 times each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def headline(figure: Figure, text: str) -> None:
    """Write what the whole picture shows over it, from the left border on."""
    figure.suptitle(short(text, HEADLINE), x=0.01, horizontalalignment="left", fontsize=10)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG; its path."""
    with look():
        figure.savefig(path, dpi=DPI)
    return path


def colour(index: int) -> str:
    """Of the series with this number."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Of the series with this number."""
    return MARKERS[index % len(MARKERS)]


def short(text: str, columns: int, lines: int = 2) -> str:
    """Text in at most so many lines of at most so many letters; what is left out becomes an
    ellipsis.
    """
    wrapped = textwrap.wrap(" ".join(text.split()), columns) or [""]
    if len(wrapped) > lines:
        last = wrapped[lines - 1][: columns - 1].rstrip()
        wrapped = [*wrapped[: lines - 1], f"{last}…"]
    return "\n".join(wrapped)


def distinct(names: Sequence[str], columns: int, lines: int = 2) -> list[str]:
    """Names shortened, and numbered where they would be the same."""
    found: list[str] = []
    for name in names:
        text = short(name, columns, lines)
        number = 1
        while text in found:
            number += 1
            text = f"{short(name, columns - 4, lines)} ({number})"
        found.append(text)
    return found


def rows_height(labels: Sequence[str]) -> float:
    """What rows with these names need [inch]."""
    return sum(ROW + LINE * label.count("\n") for label in labels)


def places(labels: Sequence[str]) -> list[float]:
    """Where each row lies: downward, a row of two lines taking more than one of one line."""
    found: list[float] = []
    below = 0.0
    for label in labels:
        height = (ROW + LINE * label.count("\n")) / ROW
        found.append(below + height / 2)
        below += height
    return found


def name_rows(axes: Axes, labels: Sequence[str]) -> list[float]:
    """Give the vertical axis one named row a label, the first on top; where the rows lie."""
    at = places(labels)
    axes.set_yticks(at, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(sum((ROW + LINE * label.count("\n")) / ROW for label in labels), 0.0)
    axes.grid(axis="x")
    return at


def legend_below(
    figure: Figure, axes: Axes, handles: Sequence[Any] | None = None, columns: int = 56
) -> None:
    """What the colours mean, below the axes where nothing else is; the figure grows by its height.

    Args:
        figure: gets the legend.
        axes: whose labelled artists are in it, where there are no
        handles: artists with labels.
        columns: letters of an entry in a line.
    """
    entries = axes.get_legend_handles_labels()[0] if handles is None else handles
    if not entries:
        return
    labels = distinct([str(entry.get_label()) for entry in entries], columns)
    across = _across(labels, int(figure.get_figwidth() * LETTERS_AN_INCH))
    figure.legend(entries, labels, loc="outside lower center", ncols=across)
    rows = -(-len(labels) // across)
    deepest = max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + LINE * rows * deepest + 0.15)


def _across(labels: Sequence[str], letters: int) -> int:
    """Entries beside each other in so many letters: all, or as many as fit at the widest's
    width.
    """
    widths = [max(map(len, label.splitlines())) + HANDLE for label in labels]
    if sum(widths) <= letters:
        return len(labels)
    return max(1, letters // max(widths))
