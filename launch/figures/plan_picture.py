"""What a plan keeps: a bar a language layer, and the kept visual tokens of some frames below it.

Every frame has a column with its instruction over it, six columns beside each other at most. Knows
scores, images and instructions; knows no policy and no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trimvla.launch.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 6
COLUMN = 2.1  # inch
SCORES = 2.6  # inch: the height of the layers' axes
EACH_LAYER = 24  # up to so many layers each has its number
LETTERS = 27  # of an instruction in one line of its column
LINES = 4


@dataclass(frozen=True, eq=False)
class KeptFrame:
    """One frame: the image that the policy was given, and the same with what is dropped dimmed.

    Both uint8[S, S, 3], of any size.
    """

    image: np.ndarray
    shown: np.ndarray
    instruction: str


def draw_plan(
    scores: Sequence[float], layers: Sequence[int], frames: Sequence[KeptFrame], path: Path
) -> Path:
    """Draw `plan_figure` into a PNG; its path."""
    return style.save(plan_figure(scores, layers, frames), path)


@style.look()
def plan_figure(
    scores: Sequence[float], layers: Sequence[int], frames: Sequence[KeptFrame]
) -> Figure:
    """What a plan keeps.

    Args:
        scores: importance of every layer; none where the plan was not measured.
        layers: indices of the kept ones.
        frames: none where every token is kept.
    """
    across = min(max(len(frames), 1), ACROSS)
    blocks = -(-len(frames) // ACROSS)
    titles = [style.short(frame.instruction, LETTERS, LINES) for frame in frames]
    deepest = max((title.count("\n") + 1 for title in titles), default=0)
    block = 2 * COLUMN + style.LINE * deepest + 0.3
    width = max(style.WIDTH, COLUMN * across)
    figure = style.blank(SCORES + 0.4 + block * blocks, width)
    heights = (SCORES, *(COLUMN,) * (2 * blocks))
    grid = figure.add_gridspec(1 + 2 * blocks, across, height_ratios=heights)
    draw_scores(figure.add_subplot(grid[0, :]), scores, layers)
    for number, (frame, title) in enumerate(zip(frames, titles, strict=True)):
        above = 1 + 2 * (number // ACROSS)
        column = number % ACROSS
        pair = [figure.add_subplot(grid[row, column]) for row in (above, above + 1)]
        for axes, image in zip(pair, (frame.image, frame.shown), strict=True):
            axes.imshow(image)
            axes.set_axis_off()
        pair[0].set_title(title, fontsize=8.5, loc="center")
    return figure


def draw_scores(axes: Axes, scores: Sequence[float], layers: Sequence[int]) -> None:
    """One bar a layer; what is removed is pale."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    kept = set(layers)
    places = range(len(scores))
    axes.bar(places, scores, color=[style.BLUE if at in kept else style.PALE for at in places])
    axes.set(xlabel="language layer", ylabel="importance score", xlim=(-0.7, len(scores) - 0.3))
    axes.set_title(f"language layers: {len(kept)} of {max(len(scores), len(kept))} kept")
    if len(scores) <= EACH_LAYER:
        axes.set_xticks(places)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(EACH_LAYER, integer=True))
    axes.grid(axis="y")
    axes.legend(
        handles=[Patch(color=style.BLUE, label="kept"), Patch(color=style.PALE, label="removed")],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        borderaxespad=0.2,
    )
