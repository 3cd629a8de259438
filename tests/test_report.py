"""Pictures: what is kept stays bright, what is not is dimmed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimvla.launch.figures.report import DIM, draw_plan, draw_tradeoff, kept_over_image
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


def test_a_plan_and_a_trade_off_are_drawn(tmp_path: Path) -> None:
    frames = [(kept_over_image(WHITE, np.array([0]), 4), WHITE, "pick up the cube")] * 2
    rows = [
        {"name": "dense", "ms": 40.0, "success": 0.8, "interval": (0.75, 0.85), "control": False},
        {"name": "random", "ms": 20.0, "success": 0.2, "interval": (0.15, 0.25), "control": True},
    ]
    for path in (
        draw_plan((0.1, 0.2), (1,), frames, tmp_path / "plan.png"),
        draw_plan((0.1, 0.2), (1,), [], tmp_path / "layers.png"),
        draw_tradeoff(rows, tmp_path / "tradeoff.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")
