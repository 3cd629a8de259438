"""Kept tokens over an image: what is kept stays bright, what is not is dimmed."""

from __future__ import annotations

import numpy as np
import pytest

from trimvla.launch.figures.kept_tokens import DIM, kept_over_image
from trimvla.runtime.errors import ConfigError

WHITE = np.full((8, 8, 3), 200, np.uint8)


def test_kept_patches_stay_bright_and_the_others_are_dimmed() -> None:
    shown = kept_over_image(WHITE, np.array([1, 6]), grid=4, side=16)
    assert shown.shape == (16, 16, 3)
    light = shown[2::4, 2::4, 0].ravel()  # the middle of every patch, in raster order
    assert (light[[1, 6]] == 200).all()
    assert (np.delete(light, [1, 6]) == int(200 * DIM)).all()


def test_the_picture_is_enlarged_to_whole_patches_and_not_turned() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 7] = 255  # top right
    shown = kept_over_image(image, np.arange(9), grid=3, side=31)
    assert shown.shape == (33, 33, 3)
    assert (shown[0, 32] == 255).all()
    assert (shown[32, 0] == 0).all()


@pytest.mark.parametrize(
    ("image", "kept", "message"),
    [
        (WHITE, [16], "indices below 16 for 'kept'"),
        (WHITE, [-1], "indices below 16 for 'kept'"),
        (WHITE.astype(np.float32), [0], r"uint8\[h, w, 3\] for 'image', got float32\[8, 8, 3\]"),
    ],
)
def test_what_is_no_picture_or_no_patch_is_refused(
    image: np.ndarray, kept: list[int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kept_over_image(image, np.array(kept), grid=4)
