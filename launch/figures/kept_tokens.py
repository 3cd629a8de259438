"""The kept visual tokens over the image that they are of: everything else is dimmed.

Arrays in, arrays out, with NumPy alone. Knows no policy.
"""

from __future__ import annotations

import numpy as np

from trimvla.runtime.errors import ConfigError

DIM = 0.25  # brightness of what is not kept


Grid = int | tuple[int, int]
"""Patches per side, or rows and columns of them."""


def kept_over_image(image: np.ndarray, kept: np.ndarray, grid: Grid, side: int = 384) -> np.ndarray:
    """The image with everything dimmed but the patches whose visual tokens are kept.

    Args:
        image: uint8[h, w, 3], of the policy's ratio of sides; enlarged without smoothing.
        kept: int[K], indices of visual tokens in raster order of the grid.
        grid: of patches.
        side: pixels per side of the result, at least; rounded up to whole patches. Of a grid that
            is no square: those of its longer side.

    Returns:
        uint8[S, S, 3], or of the grid's ratio of sides.

    Raises:
        ConfigError: no image, or an index outside the raster.
    """
    kept = np.asarray(kept).ravel()
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ConfigError(
            f"expected uint8[h, w, 3] for 'image', got {image.dtype}{list(image.shape)}"
        )
    rows, columns = sides_of(grid)
    count = rows * columns
    if kept.size and not 0 <= kept.min() <= kept.max() < count:
        raise ConfigError(
            f"expected indices below {count} for 'kept', got {kept.min()} to {kept.max()}"
        )
    patch = -(-side // max(rows, columns))
    light = np.full(count, DIM)
    light[kept] = 1.0
    bright = light.reshape(rows, columns).repeat(patch, axis=0).repeat(patch, axis=1)
    return (enlarge(image, *bright.shape) * bright[..., None]).astype(np.uint8)


def sides_of(grid: Grid) -> tuple[int, int]:
    """Rows and columns."""
    return (grid, grid) if isinstance(grid, int) else grid


def enlarge(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest neighbour: uint8[h, w, 3] -> uint8[height, width, 3]."""
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    return image[rows[:, None], columns]
