"""Draws one policy call: the picture with its kept tokens; layers, sampler steps and stage times
beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trimvla.launch.figures.report import kept_over_image
from trimvla.runtime.errors import ConfigError

# pixels
SIDE = 512
PANEL = 440
MARGIN = 16
LABEL = 100
PAPER = (255, 255, 255)
INK = (30, 30, 30)
FAINT = (205, 205, 205)
ACCENT = (32, 120, 200)


@dataclass(frozen=True, eq=False)
class CallStory:
    """What one call used, and what it took.

    `kept` int64[K]: raster indices in a `grid` x `grid` of patches.
    """

    image: NDArray[np.uint8]
    instruction: str
    bundle: str
    grid: int
    kept: NDArray[np.int64]
    layers: tuple[int, ...]
    all_layers: int
    recompute: tuple[int, ...]
    steps: int
    milliseconds: dict[str, float]
    same: bool | None
    """Whether the actions are those that were recorded; None where nothing was."""


def describe(story: CallStory) -> list[str]:
    """The story in words."""
    reuse = ", the others reuse" if len(story.recompute) < story.steps else ""
    lines = [
        f"{story.bundle}: {story.instruction}",
        f"visual tokens   {len(story.kept)} of {story.grid**2}",
        f"language layers {len(story.layers)} of {story.all_layers}",
        f"sampler steps   {len(story.recompute)} computed of {story.steps}{reuse}",
        *(f"{name:<15} {value:.1f} ms" for name, value in story.milliseconds.items()),
    ]
    if story.same is not None:
        lines.append(
            "actions         "
            + ("as recorded, bit for bit" if story.same else "not those that were recorded")
        )
    return lines


def draw(story: CallStory) -> Image.Image:
    """The picture of the call."""
    page = Image.new("RGB", (SIDE + PANEL + 3 * MARGIN, SIDE + 2 * MARGIN), PAPER)
    seen = Image.fromarray(kept_over_image(story.image, story.kept, story.grid, SIDE))
    page.paste(seen.resize((SIDE, SIDE), Image.Resampling.NEAREST), (MARGIN, MARGIN))
    pen = ImageDraw.Draw(page)
    left = SIDE + 2 * MARGIN
    y = _lines(pen, left, MARGIN, describe(story)[:4])
    for title, ran, count in (
        ("layers", story.layers, story.all_layers),
        ("steps", story.recompute, story.steps),
    ):
        pen.text((left, y), title, INK, _font())
        _cells(pen, left + LABEL, y, ran, count)
        y += 34
    _bars(pen, left, y, story.milliseconds)
    return page


def check_suffix(path: Path) -> None:
    """Raise ConfigError for a file name that says of no picture that can be written."""
    Image.init()
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"expected a picture's suffix such as .png for --out, got {path}")


def write(path: Path, story: CallStory) -> None:
    """Draw to a file. Raises ConfigError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(story).save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot write the picture: {error}") from None


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(15)


def _lines(pen: ImageDraw.ImageDraw, left: int, top: int, lines: Sequence[str]) -> int:
    """Text, one line under the other; returns where the next thing may begin."""
    for number, line in enumerate(lines):
        pen.text((left, top + 22 * number), " ".join(line.split())[:60], INK, _font())
    return top + 22 * len(lines) + 12


def _cells(pen: ImageDraw.ImageDraw, left: int, top: int, ran: Sequence[int], count: int) -> None:
    """A strip of cells, those that ran filled."""
    width = (PANEL - LABEL) / max(1, count)
    for index in range(count):
        x = left + index * width
        pen.rectangle(
            (x, top, x + max(1.0, width - 2), top + 18), ACCENT if index in ran else FAINT
        )


def _bars(pen: ImageDraw.ImageDraw, left: int, top: int, milliseconds: dict[str, float]) -> None:
    """Times as bars, the longest as long as the panel."""
    longest = max(milliseconds.values(), default=0.0) or 1.0
    for number, (name, value) in enumerate(milliseconds.items()):
        y = top + 8 + 30 * number
        pen.text((left, y), name, INK, _font())
        pen.rectangle(
            (left + LABEL, y, left + LABEL + (PANEL - LABEL - 90) * value / longest, y + 18), ACCENT
        )
        pen.text((left + PANEL - 80, y), f"{value:.1f} ms", INK, _font())
