"""JPEG and PNG from outside to RGB pixels: their size and their cost are checked before anything is
unpacked.

A few bytes can ask for gigabytes (a PNG of zeros), for minutes (a progressive JPEG with thousands
of scans) or for a parser's patience (millions of empty chunks). The file's own headers show it,
and are read here without a decoder.
"""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trimvla.runtime.errors import ImageError, WireError
from trimvla.runtime.images import to_rgb
from trimvla.runtime.specs import MAX_PIXELS

Kind = Literal["jpeg", "png"]
JPEG_QUALITY = 90
MAX_SCANS = 64  # of a JPEG; a progressive one has about ten
MAX_PARTS = 10_000  # chunks of a PNG, segments of a JPEG before its pixels
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN = b"\xff\xda"
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))  # JPEG markers
FRAME_HEADERS = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))


def decode_image(data: bytes, kind: Kind, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """RGB uint8[h, w, 3] of a JPEG or PNG file; `size` [pixels], width and height, where it is
    known.

    Raises WireError for a damaged file, another size or one above `MAX_PIXELS`, pixels that
    `images.to_rgb` refuses, an orientation that exchanges width and height against `size`, and what
    would cost more to unpack than images do.
    """
    measured = measure(data, kind)
    if size is not None and measured != size:
        raise WireError(f"expected {size[0]} x {size[1]} pixels, got {measured}")
    if measured[0] * measured[1] > MAX_PIXELS:
        raise WireError(f"expected at most {MAX_PIXELS} pixels, got {measured}")
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            if image.size != measured:
                raise ImageError(f"expected {measured} pixels, got {image.size}")
            pixels = to_rgb(image)
    except ImageError as error:
        raise WireError(f"no {kind} image: {error}") from None
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise WireError(f"no {kind} image: {str(error)[:200]}") from None
    if size is not None and pixels.shape[1::-1] != size:
        raise WireError(
            f"expected {size[0]} x {size[1]} pixels, got {pixels.shape[1::-1]} once upright"
        )
    return pixels


def encode_image(image: NDArray[np.uint8], kind: Kind) -> bytes:
    """A JPEG or PNG file of RGB uint8[h, w, 3]; a PNG is packed for speed, not for size."""
    sink = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "jpeg" else {"compress_level": 1}
    Image.fromarray(image).save(sink, kind, **options)
    return sink.getvalue()


def measure(data: bytes, kind: Kind) -> tuple[int, int]:
    """Width and height [pixels], by the file's headers alone. Raises WireError."""
    try:
        width, height = _measure_png(data) if kind == "png" else _measure_jpeg(data)
    except (struct.error, IndexError):
        raise WireError(f"no {kind} image: it is cut off") from None
    if not (width and height):
        raise WireError(f"no {kind} image: expected pixels, got {width} x {height}")
    return width, height


def _measure_png(data: bytes) -> tuple[int, int]:
    if not data.startswith(PNG_MAGIC) or data[12:16] != b"IHDR":
        raise WireError("no png image: expected its signature and header first")
    place = len(PNG_MAGIC)
    for _ in range(MAX_PARTS):
        if place + 8 > len(data) or data[place + 4 : place + 8] == b"IEND":
            return struct.unpack_from(">II", data, 16)
        (length,) = struct.unpack_from(">I", data, place)
        place += 12 + length
    raise WireError(f"expected at most {MAX_PARTS} chunks in a png image")


def _measure_jpeg(data: bytes) -> tuple[int, int]:
    if not data.startswith(b"\xff\xd8"):
        raise WireError("no jpeg image: expected its signature first")
    if (scans := data.count(START_OF_SCAN)) > MAX_SCANS:
        raise WireError(f"expected at most {MAX_SCANS} scans in a jpeg image, got {scans}")
    place = 2
    for _ in range(MAX_PARTS):
        if data[place] != 0xFF:
            raise WireError("no jpeg image: expected a marker")
        marker = data[place + 1]
        place += 1
        if marker == 0xFF:  # padding
            continue
        place += 1
        if marker in WITHOUT_LENGTH:
            continue
        if marker in FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, place + 3)
            return width, height
        place += struct.unpack_from(">H", data, place)[0]
    raise WireError(f"expected at most {MAX_PARTS} segments in a jpeg image")
