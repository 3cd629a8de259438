"""Films play, hold every picture, and say what was asked and how it ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trimvla.launch.evaluation import video
from trimvla.launch.evaluation.video import BAND, Clip
from trimvla.runtime.errors import ConfigError

FPS = 10


def clip(success: bool = True, pictures: int = 5, size: int = 97) -> Clip:
    rng = np.random.default_rng(0)
    images = [
        np.full((size, size, 3), value, np.uint8) for value in rng.integers(30, 220, pictures)
    ]
    return Clip(images, "put the red cube on the blue plate", success)


def test_mp4_plays_every_picture(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = video.write(tmp_path / "deep" / "film.mp4", [clip(), clip(False)], FPS)
    reader = cv2.VideoCapture(str(path))
    sizes = []
    while True:
        there, picture = reader.read()
        if not there:
            break
        sizes.append(picture.shape)
    assert len(sizes) == 2 * (5 + round(video.LINGER_S * FPS))
    assert set(sizes) == {(96 + BAND, 96, 3)}


def test_gif_plays(tmp_path: Path) -> None:
    path = video.write(tmp_path / "film.gif", [clip()], FPS)
    with Image.open(path) as film:
        assert film.n_frames >= 5
        assert film.size == (96, 96 + BAND)


def test_the_outcome_is_drawn() -> None:
    good, bad = (list(video.drawn(clip(success), FPS))[-1] for success in (True, False))
    assert not np.array_equal(good, bad)
    assert np.array_equal(good[:96], bad[:96])


def test_long_instructions_fit() -> None:
    text = "stack the yellow cube on the purple cube and then do it once more"
    assert video.font(text, 360).getlength(text) <= 360


@pytest.mark.parametrize(
    ("name", "clips", "field"), [("film.avi", [clip()], "suffix"), ("film.mp4", [], "video")]
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, name: str, clips: list[Clip], field: str
) -> None:
    with pytest.raises(ConfigError, match=field):
        video.write(tmp_path / name, clips, FPS)
