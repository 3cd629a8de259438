"""Draws one policy call: the image with its kept tokens; layers, sampler steps, stage times beside.

What is drawn is laid out first, as texts and boxes in pixels: text is shortened or broken where it
would not fit, and the page is as high as it needs to be. Knows no policy and no file but the PNG.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trimvla.launch.figures.kept_tokens import Grid, kept_over_image, sides_of
from trimvla.runtime.errors import ConfigError

SIDE = 512  # pixels, as all lengths here
PANEL = 440
MARGIN = 16
LABEL = 112
NUMBER = 84  # for a bar's number behind it
TEXT = 15  # of the letters
STEP = 22  # of a line of text
ROW = 32  # of a row with cells or a bar
CELL = 18  # of these
LEFT = SIDE + 2 * MARGIN
ELLIPSIS = "…"
LARGE = 1e5  # milliseconds; from here on in seconds
LINES = 4  # of one paragraph
PAPER = (255, 255, 255)
INK = (30, 30, 30)
FAINT = (205, 205, 205)
ACCENT = (31, 111, 180)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class CallStory:
    """What one call used, and what it took.

    `kept` int64[K]: raster indices in a `grid` of patches, one camera after the other.
    """

    images: Mapping[str, NDArray[np.uint8]]
    """By camera, in the policy's order."""
    instruction: str
    bundle: str
    grid: Grid
    kept: NDArray[np.int64]
    layers: tuple[int, ...]
    all_layers: int
    recompute: tuple[int, ...]
    steps: int
    milliseconds: dict[str, float]
    same: bool | None
    """Whether the actions are those that were recorded; None where nothing was."""
    guidance: float | str | None = None
    """The plan's; None where it has none of its own."""
    patch: str | None = None
    """Which recovered weights the bundle has, in words; None where it has none."""

    @property
    def tokens(self) -> int:
        """Visual tokens of all cameras."""
        return len(self.images) * math.prod(sides_of(self.grid))

    def marked(self, side: int | None = None) -> dict[str, NDArray[np.uint8]]:
        """Every camera's image under its kept tokens."""
        size = math.prod(sides_of(self.grid))
        return {
            camera: kept_over_image(
                image, self.kept[self.kept // size == place] % size, self.grid, *_given(side)
            )
            for place, (camera, image) in enumerate(self.images.items())
        }


def _given(side: int | None) -> tuple[int, ...]:
    return () if side is None else (side,)


@dataclass(frozen=True)
class Text:
    """One line of text; `left` and `top` in pixels."""

    left: int
    top: int
    text: str

    def box(self, font: Font) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of its letters [pixels]."""
        left, top, right, bottom = font.getbbox(self.text)
        return self.left + left, self.top + top, self.left + right, self.top + bottom


@dataclass
class Page:
    """What is drawn beside the image, from the top down."""

    font: Font
    top: int = MARGIN
    texts: list[Text] = field(default_factory=list)
    boxes: list[tuple[tuple[float, float, float, float], tuple[int, int, int]]] = field(
        default_factory=list
    )
    """Rectangles (left, top, right, bottom) [pixels] with their colours."""

    @property
    def height(self) -> int:
        """Of the page [pixels]: the image fits, and so does all of this."""
        return max(SIDE + MARGIN, self.top) + MARGIN

    def write(self, text: str) -> None:
        """A paragraph over the panel's width."""
        for line in broken(text, self.font, PANEL):
            self.texts.append(Text(LEFT, self.top, line))
            self.top += STEP

    def cells(self, name: str, ran: Sequence[int], count: int) -> None:
        """A strip of cells, those that ran filled."""
        self._name(name)
        width = (PANEL - LABEL) / max(1, count)
        for index in range(count):
            left = LEFT + LABEL + index * width
            box = (left, self.top, left + max(1.0, width - 2), self.top + CELL)
            self.boxes.append((box, ACCENT if index in ran else FAINT))
        self.top += ROW

    def bars(self, milliseconds: dict[str, float]) -> None:
        """Times [ms] as bars; the longest leaves room for its number."""
        longest = max(milliseconds.values(), default=0.0) or 1.0
        for name, value in milliseconds.items():
            self._name(name)
            left = LEFT + LABEL
            right = left + (PANEL - LABEL - NUMBER) * value / longest
            self.boxes.append(((left, self.top, right, self.top + CELL), ACCENT))
            number = f"{value:.1f} ms" if value < LARGE else f"{value / 1000:.3g} s"
            self.texts.append(Text(int(right) + 6, self.top, number))
            self.top += ROW

    def _name(self, name: str) -> None:
        """What the row that begins here shows."""
        self.texts.append(Text(LEFT, self.top, fitted(name, self.font, LABEL - 8)))


def describe(story: CallStory) -> list[str]:
    """The story in words."""
    reuse = ", the others reuse" if len(story.recompute) < story.steps else ""
    guidance = "" if story.guidance is None else f", guidance {story.guidance}"
    lines = [
        f"{story.bundle}: {story.instruction}",
        f"visual tokens   {len(story.kept)} of {story.tokens}",
        f"language layers {len(story.layers)} of {story.all_layers}",
        f"sampler steps   {len(story.recompute)} computed of {story.steps}{reuse}{guidance}",
        *(f"{name:<15} {value:.1f} ms" for name, value in story.milliseconds.items()),
    ]
    if story.patch is not None:
        lines.append(f"weights         {story.patch}")
    if story.same is not None:
        same = "as recorded, bit for bit" if story.same else "not those that were recorded"
        lines.append(f"actions         {same}")
    return lines


def draw(story: CallStory) -> Image.Image:
    """The picture of the call."""
    page = lay_out(story)
    count = len(story.images)
    image = Image.new("RGB", (count * (SIDE + MARGIN) + PANEL + 2 * MARGIN, page.height), PAPER)
    for place, marked in enumerate(story.marked(SIDE).values()):
        seen = Image.fromarray(marked).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        image.paste(seen, (MARGIN + place * (SIDE + MARGIN), MARGIN))
    shift = (count - 1) * (SIDE + MARGIN)
    pen = ImageDraw.Draw(image)
    for box, colour in page.boxes:
        left, top, right, bottom = box
        pen.rectangle((left + shift, top, right + shift, bottom), colour)
    for text in page.texts:
        pen.text((text.left + shift, text.top), text.text, INK, page.font)
    return image


def lay_out(story: CallStory) -> Page:
    """Where everything beside the image goes."""
    page = Page(ImageFont.load_default(TEXT))
    for line in describe(story)[:4]:
        page.write(line)
    page.top += 12
    page.cells("layers", story.layers, story.all_layers)
    page.cells("steps", story.recompute, story.steps)
    page.top += 8
    page.bars(story.milliseconds)
    return page


def check_suffix(path: Path) -> None:
    """Raise ConfigError for a file name whose suffix is of no image that can be written."""
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


def fitted(text: str, font: Font, width: float) -> str:
    """The text, or its beginning with an ellipsis, in so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + ELLIPSIS) > width:
        text = text[:-1]
    return text.rstrip() + ELLIPSIS


def broken(text: str, font: Font, width: float) -> Iterator[str]:
    """The text in at most `LINES` lines of so many pixels, broken between words."""
    words = text.split()
    for _ in range(LINES - 1):
        count = len(words)
        while count > 1 and font.getlength(" ".join(words[:count])) > width:
            count -= 1
        if count >= len(words):
            break
        yield fitted(" ".join(words[:count]), font, width)
        words = words[count:]
    if words:
        yield fitted(" ".join(words), font, width)
