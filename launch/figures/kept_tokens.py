"""The kept visual tokens over the image that they are of: everything else is dimmed.

Arrays in, arrays out, with NumPy alone. Knows no policy.
"""

from __future__ import annotations

import numpy as np

from trimvla.runtime.errors import ConfigError

DIM = 0.25  # brightness of what is not kept


def kept_over_image(image: np.ndarray, kept: np.ndarray, grid: int, side: int = 384) -> np.ndarray:
    """The image with everything dimmed but the patches whose visual tokens are kept.

    Args:
        image: uint8[h, w, 3], square as the policy sees it; enlarged without smoothing.
        kept: int[K], indices of visual tokens in raster order of a grid x grid raster.
        grid: patches per side.
        side: pixels per side of the result, at least; rounded up to whole patches.

    Returns:
        uint8[S, S, 3].

    Raises:
        ConfigError: no image, or an index outside the raster.
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
