"""A window of the official picture, rendered by itself: its pixels are the official ones, or a
finer or coarser grid.

The camera stands still, so a part of its picture is a camera with another centre and the matching
part of the background. Knows the official camera; knows no task and no policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trimvla.runtime.errors import ConfigError

# of the official picture [pixels]
WIDTH = 640
HEIGHT = 480
# of the official camera [pixels]
FOCAL = 623.588
CENTRE = (319.501, 239.545)


@dataclass(frozen=True)
class View:
    """A window of the official picture [its pixels], and how many pixels it is rendered with."""

    left: int
    top: int
    width: int
    height: int
    scale: float = 1.0
    """Rendered pixels per official one, along each side."""

    def __post_init__(self) -> None:
        inside = self.left >= 0 <= self.top and self.width > 0 < self.height
        inside = inside and self.left + self.width <= WIDTH and self.top + self.height <= HEIGHT
        if not inside or self.scale <= 0:
            raise ConfigError(f"expected a window of a {WIDTH} x {HEIGHT} picture, got {self}")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the rendered picture [pixels]."""
        return round(self.width * self.scale), round(self.height * self.scale)

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Left, top, width and height in shares of the official picture's sides."""
        return self.left / WIDTH, self.top / HEIGHT, self.width / WIDTH, self.height / HEIGHT

    @property
    def intrinsic(self) -> np.ndarray:
        """float64[3, 3]: the camera that sees the window alone; its focal length and centre in
        rendered pixels.
        """
        focal = FOCAL * self.scale
        x = CENTRE[0] - self.left
        y = CENTRE[1] - self.top
        return np.array([[focal, 0, x * self.scale], [0, focal, y * self.scale], [0, 0, 1.0]])

    @property
    def full(self) -> View:
        """The same window with the official picture's pixels."""
        return replace(self, scale=1.0)

    def of(self, picture: np.ndarray) -> np.ndarray:
        """The window of an official picture uint8[480, 640, 3], at the rendered size."""
        rows = slice(self.top, self.top + self.height)
        return self.resized(picture[rows, self.left : self.left + self.width])

    def resized(self, window: np.ndarray) -> np.ndarray:
        """The window uint8[h, w, 3] of any resolution, at the rendered size."""
        from PIL import Image

        if (window.shape[1], window.shape[0]) == self.size:
            return window
        return np.asarray(Image.fromarray(window).resize(self.size, Image.Resampling.BICUBIC))


def whole(width: int = WIDTH) -> View:
    """The whole picture at a width of its own."""
    return View(0, 0, WIDTH, HEIGHT, width / WIDTH)


# where objects, targets and the tool are, of all four tasks
# where objects, targets and the tool are, of all four tasks
WORKSPACE = View(48, 0, 448, 448)
