"""Which images show the same, by content.

Pure: knows pixels; not times, cameras or what follows from it.

An image is looked at in 128 x 128 points, in 16 x 16 cells. Two questions are answered: in which
cells are all points equal to those of another image, and is an image the same but for its encoding,
its noise and its brightness. Both together cost less than reading the image once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIDE = 128
GRID = 16
CELLS = GRID * GRID
STEP = SIDE // GRID  # points of a cell, each way
WORDS = STEP * 3 // 8  # of 8 bytes, in a cell's row of points
LEAST = 1.0
MOST = 8.0
"""Within these the tolerance of a cell's brightness lies: one JPEG of quality 50 from another
differs by up to 6.
"""
SPREAD = 12.0
"""The tolerance in medians: codecs and noise touch all cells, so their worst cell is within 12
times the middle one. A robot that moves changes few cells, by far more.
"""
CLIPPED = 250  # a point as bright as this no longer scales with the others
GAIN = (0.5, 2.0)  # what automatic exposure may do
# standard deviation between cells below which there is nothing to compare [grey levels]
CONTRAST = 4.0

# Odd and different, so that points which change their places change the sum.
_WEIGHTS = (np.random.default_rng(0).integers(0, 2**63, (STEP, 1, WORDS), dtype=np.uint64) << 1) | 1


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of one image."""

    points: NDArray[np.uint8]
    """uint8[128, 128, 3]"""
    marks: NDArray[np.uint64]
    """uint64[256]: equal where all points of a cell are equal."""
    grey: NDArray[np.float32]
    """float32[256]: mean brightness of each cell, from 0 to 255; NaN where a point is clipped."""


def sample(image: NDArray[np.uint8]) -> Sample:
    """128 x 128 points of an image uint8[h, w, 3] of any size."""
    height, width = image.shape[:2]
    points = image.reshape(-1, 3).take(_places(height, width), axis=0).reshape(SIDE, SIDE, 3)
    marks = (_words(points) * _WEIGHTS).sum(axis=(1, 3)).ravel()
    columns = points.reshape(GRID, STEP, SIDE * 3).sum(axis=1, dtype=np.uint16)
    grey = columns.reshape(CELLS, STEP * 3).sum(axis=1, dtype=np.float32) / (3 * STEP * STEP)
    brightest = points.reshape(GRID, STEP, -1).max(axis=1).reshape(CELLS, STEP * 3).max(axis=1)
    grey[brightest >= CLIPPED] = np.nan
    return Sample(points, marks, grey)


@lru_cache(maxsize=8)
def _places(height: int, width: int) -> NDArray[np.intp]:
    """Which pixels of an image are looked at, int[16384]."""
    rows = np.arange(SIDE) * height // SIDE * width
    return (rows[:, None] + np.arange(SIDE) * width // SIDE).ravel()


def _words(points: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The points of every cell, uint64[row of cells, row of points, column of cells, word]."""
    return points.reshape(GRID, STEP, GRID, STEP * 3).view(np.uint64)


def textured(points: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool[256]: whether a cell has structure.

    Plain and overexposed cells are equal whatever happens.
    """
    words = _words(points)
    return (words != words[:, :1]).any(axis=(1, 3)).ravel()


def count_different(first: Sample, second: Sample) -> int:
    """Values of points, three each, that are not equal."""
    return int(np.count_nonzero(first.points != second.points))


def alike(known: NDArray[np.float32], grey: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which images show what this one shows, but for encoding, noise and brightness.

    Args:
        known: float32[n, 256], the cells' brightness of n images.
        grey: float32[256], of this one.

    Returns:
        bool[n]; false for an image without contrast, in which nothing can be compared.
    """
    usable = np.isfinite(known) & np.isfinite(grey)
    count = np.maximum(usable.sum(axis=1), 1).astype(np.float32)
    old = _centred(np.where(usable, known, np.float32(0)), usable, count)
    new = _centred(np.where(usable, grey, np.float32(0)), usable, count)
    variance = np.einsum("nc,nc->n", old, old)
    gain = np.einsum("nc,nc->n", old, new) / np.maximum(variance, 1e-6)
    error = np.abs(new - gain[:, None] * old)
    fair = (
        (gain > GAIN[0]) & (gain < GAIN[1]) & (variance > CONTRAST**2 * count) & (count > CELLS / 4)
    )
    found = fair & (error.max(axis=1) < MOST)
    for index in np.flatnonzero(found):
        middle = float(np.median(error[index][usable[index]]))
        found[index] = error[index].max() < np.clip(SPREAD * middle, LEAST, MOST)
    return found


def _centred(
    values: NDArray[np.float32], usable: NDArray[np.bool_], count: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Minus the mean of what is usable; the rest, which must be 0, stays 0."""
    return values - usable * (values.sum(axis=1) / count)[:, None]
