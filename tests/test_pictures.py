"""Pictures can be read: no text lies on another or over the border, for long names and many rows.

What is measured is what was drawn: every text artist's box when matplotlib draws it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
import pytest

from trimvla.launch.evaluation.results import CurveRow

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

from trimvla.launch.evaluation.figures import (
    curve_figure,
    latency_words,
    rungs_figure,
    short_names,
    verbs_figure,
)
from trimvla.launch.figures import style
from trimvla.launch.figures.call_picture import (
    MARGIN,
    PANEL,
    SIDE,
    CallStory,
    draw,
    lay_out,
)
from trimvla.launch.figures.losses import loss_figure, title
from trimvla.launch.figures.plan_picture import KeptFrame, plan_figure
from trimvla.launch.figures.rates import Line, Rate, Series, rate_lines, rate_rows
from trimvla.launch.figures.stage_times import grouped, stage_times_figure
from trimvla.launch.figures.tradeoff import in_order, tradeoff_figure
from trimvla.runtime.bundle.schema_1 import STAGES

TOUCHING = 1.0  # pixels
LEAST_AXES = 25.0  # pixels
SHORT = "dense"
LONG = f"runs/tabletop-trimmed-to-14-layers-and-56-tokens-{'by-the-adaptive-selector-' * 3}seed-7"
WORDS = (
    f"put the $5^2_1 red cube$ on the purple plate {'at the far left end of the table ' * 3}{{x}}"
)
NAMES = (SHORT, LONG, WORDS, "x" * 150)
IMAGE = np.full((32, 32, 3), 120, np.uint8)


@contextmanager
def drawn_texts() -> Iterator[list[tuple[str, Bbox]]]:
    """Every text that is drawn in the block, with its box in pixels."""
    found: list[tuple[str, Bbox]] = []
    draw = Text.draw

    def recording(self: Text, renderer: Any) -> None:
        draw(self, renderer)
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer)))

    Text.draw = recording
    try:
        yield found
    finally:
        Text.draw = draw


def check_readable(figure: Figure) -> list[str]:
    """Draw as `savefig` does; the texts. Asserts that none touches another or the border."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit is a warning
        figure.set_dpi(style.DPI)
        canvas = FigureCanvasAgg(figure)
        with drawn_texts() as texts:
            canvas.draw()
    assert texts
    touching = [
        (a, b) for (a, one), (b, other) in combinations(texts, 2) if overlap(one, other) > TOUCHING
    ]
    assert not touching
    outside = [text for text, box in texts if not within(box, figure.bbox)]
    assert not outside
    thin = [axes for axes in figure.axes if min(axes.bbox.width, axes.bbox.height) < LEAST_AXES]
    assert not thin
    markup = [text for text, _ in texts if "\\math" in text]  # of matplotlib's own labels
    assert not markup
    return [text for text, _ in texts]


def overlap(one: Bbox, other: Bbox) -> float:
    """How deep two boxes lie in each other [pixels]; negative where they are apart."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return min(across, down)


def within(box: Bbox, page: BboxBase) -> bool:
    """Whether a box lies on the page."""
    return page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1


def rate(number: int) -> Rate:
    """A rate with its interval, another one for every number, the ends of the scale among them."""
    middle = (0.0, 1.0, 0.5, 0.73, 0.12)[number % 5]
    return Rate(middle, max(0.0, middle - 0.1), min(1.0, middle + 0.1))


def names(count: int) -> list[str]:
    """Names of every length; each twice or more where they are many."""
    return [NAMES[number % len(NAMES)] for number in range(count)]


def tradeoff(count: int) -> Figure:
    """Rows of an ablation, some at the same time."""
    rows = [
        {
            "name": name,
            "ms": 40.0 + number // 3,
            "success": rate(number).rate,
            "interval": (rate(number).low, rate(number).high),
            "control": number % 3 == 2,
        }
        for number, name in enumerate(names(count))
    ]
    return tradeoff_figure(rows)


def stages(count: int) -> Figure:
    """Policies in as many ways as names."""
    rows = [
        {
            "part": part,
            "bundle": name,
            "backend": f"{way} {number % 4}",
            "p50_ms": 7.0 + number,
            "floor_ms": 1.0,
        }
        for number, (name, way) in enumerate(zip(names(count), reversed(names(count)), strict=True))
        for part in (*STAGES, "total")
    ]
    return stage_times_figure(rows, WORDS)


def plan(count: int) -> Figure:
    """As many layers and frames."""
    frames = [KeptFrame(IMAGE, IMAGE // 2, name) for name in names(min(count, 13))]
    return plan_figure([0.01 * number for number in range(count)], range(0, count, 2), frames)


def rows(count: int) -> Figure:
    """As many rows, and up to eight series in each."""
    series = [
        Series(
            name,
            {row: rate(row + number) for row in range(count)},
            style.colour(number),
            style.marker(number),
        )
        for number, name in enumerate(names(min(count, 8)))
    ]
    return rate_rows(names(count), series, WORDS)


def lines(count: int) -> Figure:
    """Up to twelve lines of as many points."""
    points = [(100.0 * number, rate(number)) for number in range(count)]
    return rate_lines([Line(name, points) for name in names(min(count, 12))], "latency [ms]", WORDS)


def losses(count: int) -> Figure:
    """As many steps, of up to seven losses."""
    curves = [f"{name}_cm" for name in (*NAMES, "a", "b", "c")[: max(1, min(count, 7))]]
    history = [
        {"step": float(step), **dict.fromkeys(curves, 10.0 / (1 + step))} for step in range(count)
    ]
    return loss_figure(history, curves, 5)


def evaluated(count: int) -> list[CurveRow]:
    """Results of as many bundles and up to five latencies, as `trimvla eval` keeps them."""
    return [
        CurveRow(
            bundle=name,
            latency=str(100 * late),
            ms=100.0 * late,
            success_rate=rate(late).rate,
            interval=(rate(late).low, rate(late).high),
            successes=1,
            episodes=2,
            mean_steps=None,
            held=0.0,
            against_top=None,
            outcomes="10",
        )
        for name in (f"{name}/{number}" for number, name in enumerate(names(count)))
        for late in range(min(count, 5))
    ]


def curve(count: int) -> Figure:
    """A line a bundle."""
    return curve_figure(evaluated(count), WORDS)


def waiting(count: int) -> Figure:
    """Bundles in a simulator that waits."""
    waited = [msgspec.structs.replace(row, ms=None, latency=None) for row in evaluated(count)]
    return curve_figure(waited, WORDS)


def rungs(count: int) -> Figure:
    """A row a bundle."""
    return rungs_figure(evaluated(count), WORDS)


def verbs(count: int) -> Figure:
    """As many kinds of task."""
    return verbs_figure(
        {f"{name} {number}": [number, count] for number, name in enumerate(names(count))}, WORDS
    )


FIGURES: dict[str, Callable[[int], Figure]] = {
    make.__name__: make
    for make in (tradeoff, stages, plan, rows, lines, losses, curve, waiting, rungs, verbs)
}


@pytest.mark.parametrize("count", [2, 25])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_on_another_or_over_the_border(name: str, count: int) -> None:
    check_readable(FIGURES[name](count))


@style.look()
def scattered() -> Figure:
    """The picture of before: labels at points that lie together."""
    figure = style.blank(4.0)
    axes = figure.subplots()
    for place in (0.5, 0.51):
        axes.annotate("layers + tokens", (place, place))
    return figure


@style.look()
def cut_off() -> Figure:
    """A label that begins near the right border."""
    figure = style.blank(4.0)
    figure.text(0.95, 0.5, "a label over the border")
    return figure


@pytest.mark.parametrize("make", [scattered, cut_off])
def test_what_cannot_be_read_is_found(make: Callable[[], Figure]) -> None:
    with pytest.raises(AssertionError):
        check_readable(make())


def test_a_name_is_shown_as_it_is_and_a_long_one_with_its_ellipsis() -> None:
    shown = check_readable(tradeoff(4))
    assert SHORT in shown
    assert any(text.endswith("…") for text in shown)
    assert any("$" in text for text in check_readable(plan(4))), "a dollar is no formula"


def test_two_names_that_are_shortened_alike_stay_two() -> None:
    labels = style.distinct([LONG, f"{LONG} again", SHORT], 20)
    assert len(set(labels)) == 3
    assert max(len(line) for label in labels for line in label.splitlines()) <= 20


def test_rows_come_in_an_order() -> None:
    """Plans from the slowest to the fastest, then controls; on a GPU by way, dense first."""
    given = (
        ("all", 40.0, False),
        ("random", 70.0, True),
        ("dense", 99.0, False),
        ("grid", 71.0, True),
    )
    rows = [{"name": name, "ms": ms, "control": control} for name, ms, control in given]
    ordered = in_order(rows)
    assert [row["name"] for row in ordered] == ["dense", "all", "grid", "random"]
    taken = (("graph", "L22", 9.0), ("eager", "L22", 90.0), ("graph", "dense", 8.0))
    taken = (*taken, ("eager", "dense", 80.0))
    gpu = [
        {"part": part, "bundle": bundle, "backend": way, "p50_ms": ms, "floor_ms": None}
        for way, bundle, ms in taken
        for part in (*STAGES, "total")
    ]
    assert [row.name for row in grouped(gpu)] == ["eager", "dense", "L22", "graph", "dense", "L22"]


def test_a_loss_says_its_unit() -> None:
    assert [title(name) for name in ("object_cm", "aux", "two_words_ms")] == [
        "object [cm]",
        "aux",
        "two words [ms]",
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 5, 40])
def test_the_picture_of_a_call_can_be_read(name: str, count: int) -> None:
    """The one picture that needs no matplotlib: text is laid out by its own measure."""
    story = CallStory(
        images={"image": IMAGE},
        instruction=name,
        bundle=name,
        grid=16,
        kept=np.arange(56),
        layers=tuple(range(0, count, 2)),
        all_layers=count,
        recompute=(0,),
        steps=10,
        milliseconds={f"{name} {number}": 10.0**number for number in range(count)},
        same=None,
    )
    page = lay_out(story)
    boxes = [(text.text, Bbox.from_extents(*text.box(page.font))) for text in page.texts]
    touching = [
        (a, b) for (a, one), (b, other) in combinations(boxes, 2) if overlap(one, other) > TOUCHING
    ]
    assert not touching
    left = SIDE + 1.5 * MARGIN
    paper = Bbox.from_extents(left, 0, left + PANEL + MARGIN, page.height)
    assert [text for text, box in boxes if not within(box, paper)] == []
    assert draw(story).size == (SIDE + PANEL + 3 * MARGIN, page.height)
    if name == SHORT:
        assert any(SHORT in text for text, _ in boxes)


def test_a_bundle_is_called_by_its_folder_where_that_says_which_it_is() -> None:
    assert short_names(["out/a", "b", "out/a"]) == {"out/a": "a", "b": "b"}
    assert short_names(["x/a", "y/a"]) == {"x/a": "x/a", "y/a": "y/a"}


@pytest.mark.parametrize(
    ("latency", "words"),
    [
        (None, "the simulator waits"),
        ("200", "200 ms"),
        ("orin", "orin at 100 % of its roofline"),
        ("thor:0.2", "thor at 20 % of its roofline"),
        ("lognormal:150,0.2", "lognormal:150,0.2"),
        ("wall", "wall"),
    ],
)
def test_a_latency_is_said_in_words(latency: str | None, words: str) -> None:
    assert latency_words(latency) == words
