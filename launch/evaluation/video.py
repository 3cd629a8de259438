"""Films of episodes: images with the instruction, the clock and the outcome drawn under them, as
MP4 or GIF.

Knows pixels and files; knows no simulator. Pictures are uint8[h, w, 3] RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trimvla.runtime.errors import ConfigError, TrimvlaError

BAND = 56  # pixels under the image
LINGER_S = 1.2  # how long the last image of an episode stays
INK = (235, 235, 235)
PAPER = (24, 26, 30)
GIF_PALETTE_FROM = 16  # images
GOOD = (90, 200, 120)
BAD = (230, 100, 90)


class VideoError(TrimvlaError):
    """A film could not be written, or does not play."""


@dataclass(frozen=True)
class Clip:
    """One episode: its images in order, the instruction and how it ended."""

    images: Sequence[np.ndarray]
    instruction: str
    success: bool


def write(path: Path, clips: Sequence[Clip], fps: float) -> Path:
    """Write all clips, one after the other, as `.mp4` or `.gif`, and check that the film plays.

    Raises:
        ConfigError: another suffix, or nothing to show.
        VideoError: the file does not have the images that were written.
    """
    check_suffix(path)
    images = [image for clip in clips for image in drawn(clip, fps)]
    if not images:
        raise ConfigError("expected at least one image, got none for the video")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        WRITERS[path.suffix](beside, images, fps)
        beside.replace(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)
    return path


def check_suffix(path: Path) -> None:
    """Raise ConfigError for a file name whose ending is of no film that can be written."""
    if path.suffix not in WRITERS:
        raise ConfigError(
            f"expected one of {sorted(WRITERS)}, got {path.suffix!r} for the video's suffix"
        )


def drawn(clip: Clip, fps: float) -> Iterator[np.ndarray]:
    """The clip's images with their band; the last one stays longer and shows how it ended."""
    for i, image in enumerate(clip.images):
        yield with_band(image, clip.instruction, f"{i / fps:.1f} s", INK)
    if clip.images:
        outcome, ink = ("done", GOOD) if clip.success else ("failed", BAD)
        last = with_band(clip.images[-1], clip.instruction, outcome, ink)
        yield from [last] * max(1, round(LINGER_S * fps))


def with_band(image: np.ndarray, title: str, status: str, ink: tuple[int, int, int]) -> np.ndarray:
    """uint8[h + BAND, w, 3]: the image above two lines of text; sides are even, as MP4 wants
    them.
    """
    height, width = (side - side % 2 for side in image.shape[:2])
    canvas = Image.new("RGB", (width, height + BAND), PAPER)
    canvas.paste(Image.fromarray(image[:height, :width]))
    draw = ImageDraw.Draw(canvas)
    draw.text((10, height + 8), title, fill=INK, font=font(title, width - 20))
    draw.text((10, height + 32), status, fill=ink, font=ImageFont.load_default(15))
    return np.asarray(canvas)


def font(text: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest size at which the text fits into the width [pixels]."""
    for size in range(17, 8, -1):
        candidate = ImageFont.load_default(size)
        if candidate.getlength(text) <= width:
            return candidate
    return ImageFont.load_default(8)


def _write_mp4(path: Path, images: Sequence[np.ndarray], fps: float) -> None:
    import cv2

    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise VideoError(f"{path}: this OpenCV writes no MP4; use a .gif")
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    reader = cv2.VideoCapture(str(path))
    count = 0
    while reader.read()[0]:
        count += 1
    reader.release()
    _check_count(path, len(images), count)


def _write_gif(path: Path, images: Sequence[np.ndarray], fps: float) -> None:
    """One palette for all and no dithering: what does not move costs nothing."""
    palette = _palette(np.concatenate(images[:: max(1, len(images) // GIF_PALETTE_FROM)]))
    reduced = [
        Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE)
        for image in images
    ]
    reduced[0].save(
        path, save_all=True, append_images=reduced[1:], duration=round(1000 / fps), loop=0
    )
    with Image.open(path) as film:
        _check_count(path, 1, min(1, getattr(film, "n_frames", 0)))


def _palette(sample: np.ndarray) -> Image.Image:
    """256 colours: most for what covers much (shades of the table), some for what is small (a red
    can).
    """
    image = Image.fromarray(sample)
    colors = []
    for count, method in ((192, Image.Quantize.MEDIANCUT), (64, Image.Quantize.MAXCOVERAGE)):
        colors += (image.quantize(count, method).getpalette() or [])[: 3 * count]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors)
    return palette


def _check_count(path: Path, expected: int, got: int) -> None:
    if got < expected:
        raise VideoError(f"{path}: expected {expected} images to play, got {got}")


WRITERS = {".mp4": _write_mp4, ".gif": _write_gif}
