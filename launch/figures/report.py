"""Pictures of what a plan does: worth of the layers, kept tokens over the camera image, success
against time.

Arrays in, pictures out. `kept_over_image` is plain NumPy; the others need matplotlib. Knows no
policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimvla.runtime.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIM = 0.25  # brightness of what is not kept
KEPT = "tab:blue"
REMOVED = "lightgrey"


def kept_over_image(image: np.ndarray, kept: np.ndarray, grid: int, side: int = 384) -> np.ndarray:
    """The picture with everything dimmed but the patches whose visual tokens are kept.

    Args:
        image: uint8[h, w, 3], square as the policy sees it; enlarged without smoothing.
        kept: int[K], indices of visual tokens in raster order of a grid x grid raster.
        grid: patches per side.
        side: pixels per side of the result, at least; rounded up to whole patches.

    Returns:
        uint8[S, S, 3].

    Raises:
        ConfigError: no picture, or an index outside the raster.
    """
    kept = np.asarray(kept).ravel()
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ConfigError(
            f"expected uint8[h, w, 3] for 'image', got {image.dtype}{list(image.shape)}"
        )
    if kept.size and not 0 <= kept.min() <= kept.max() < grid * grid:
        raise ConfigError(
            f"expected indices below {grid * grid} for 'kept', got {kept.min()} to {kept.max()}"
        )
    patch = -(-side // grid)
    light = np.full(grid * grid, DIM)
    light[kept] = 1.0
    bright = light.reshape(grid, grid).repeat(patch, axis=0).repeat(patch, axis=1)
    return (enlarge(image, grid * patch) * bright[..., None]).astype(np.uint8)


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Nearest neighbour: uint8[h, w, 3] -> uint8[side, side, 3]."""
    rows, columns = (np.arange(side) * length // side for length in image.shape[:2])
    return image[rows[:, None], columns]


def draw_plan(
    scores: Sequence[float],
    layers: Sequence[int],
    frames: Sequence[tuple[np.ndarray, np.ndarray, str]],
    path: Path,
) -> Path:
    """What a plan keeps: a bar a language layer, and the kept tokens of some frames.

    Args:
        scores: worth of every layer.
        layers: the kept ones.
        frames: (picture uint8[S, S, 3] as `kept_over_image` gives it, the picture alone, sentence);
            may be empty.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure

    columns = max(len(frames), 1)
    figure = Figure(
        figsize=(max(7.0, 2.4 * columns), 3.0 + 4.6 * bool(frames)), layout="constrained"
    )
    layout = figure.add_gridspec(
        1 + 2 * bool(frames), columns, height_ratios=(3.0, 2.3, 2.3)[: 1 + 2 * bool(frames)]
    )
    draw_scores(figure.add_subplot(layout[0, :]), scores, layers)
    for column, frame in enumerate(frames):
        draw_frame([figure.add_subplot(layout[row, column]) for row in (1, 2)], *frame)
    figure.savefig(path, dpi=110)
    return path


def draw_scores(axes: Axes, scores: Sequence[float], layers: Sequence[int]) -> None:
    """One bar a layer; what is removed is grey."""
    kept = set(layers)
    axes.bar(
        range(len(scores)),
        scores,
        color=[KEPT if index in kept else REMOVED for index in range(len(scores))],
    )
    axes.set(
        title=f"worth of each language layer ({len(kept)} of {len(scores)} kept)",
        xlabel="layer",
        ylabel="score",
    )
    axes.set_xticks(range(len(scores)))


def draw_frame(pair: Sequence[Axes], shown: np.ndarray, image: np.ndarray, sentence: str) -> None:
    """The camera's picture above, what is kept of it below."""
    for axes, picture in zip(pair, (image, shown), strict=True):
        axes.imshow(picture)
        axes.set_axis_off()
    pair[0].set_title(sentence, fontsize=7, wrap=True)


def draw_tradeoff(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Success against time, one point a row with its interval: up and to the left is better.

    Args:
        rows: each with `name`, `ms` (median of one chunk), `success`, `interval` (low, high),
            `control` (bool).
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        low, high = row["interval"]
        bars = [[100 * (row["success"] - low)], [100 * (high - row["success"])]]
        colour, marker = ("tab:grey", "x") if row["control"] else (KEPT, "o")
        axes.errorbar(
            [row["ms"]],
            [100 * row["success"]],
            yerr=bars,
            fmt=marker,
            color=colour,
            capsize=3,
            alpha=0.8,
        )
        axes.annotate(
            row["name"],
            (row["ms"], 100 * row["success"]),
            (5, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(
        xlabel="one action chunk, median [ms]",
        ylabel="success [%]",
        title="success against time (grey: controls)",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path
