"""Whatever an image file or an encoded image in a message holds becomes RGB uint8[h, w, 3],
upright, or is refused.

    grey, palette, CMYK, YCbCr, HSV   converted
    16 bits a channel                 scaled by their range: 0 to 65535 becomes 0 to 255. A sensor
                                      of 12 bits that does not use the upper bits is dark; who
                                      records so knows its range, a reader does not
    alpha, transparent colours        over black
    EXIF orientation                  applied
    floats, 32-bit integers           refused: their range is not known
    several frames                    refused, but for a photo with previews (MPO), whose first
                                      frame it is
    cut off, damaged, too large       refused; the number of pixels is looked at before they are
                                      unpacked

Knows Pillow; no camera and no message.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trimvla.runtime.errors import ImageError
from trimvla.runtime.specs import MAX_PIXELS

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
"""Of files. Others, such as PostScript, start programs or need them."""
PLUGINS = ("Tiff", "WebP")  # that Pillow does not load by itself
CONVERTED = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """An image file as RGB uint8[h, w, 3].

    Raises ImageError that names the file, what was expected and what came.
    """
    if not Path(path).is_file():  # a pipe would wait for ever
        found = "something else" if Path(path).exists() else "nothing"
        raise ImageError(f"{path}: expected an image file, got {found} there")
    for name in PLUGINS:
        import_module(f"PIL.{name}ImagePlugin")
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check(image)
            return to_rgb(image)
    except OSError as error:
        raise ImageError(
            f"{path}: expected an image, got: {error.strerror or _without_path(error)}"
        ) from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:  # damaged images make the decoders raise almost anything
        raise ImageError(f"{path}: expected an image, got: {str(error)[:200]}") from None


def _without_path(error: OSError) -> str:
    """Pillow's words where it knows no format."""
    return (
        f"none of {', '.join(FORMATS)}"
        if isinstance(error, UnidentifiedImageError)
        else str(error)[:200]
    )


def _check(image: Image.Image) -> None:
    """What is known before the pixels are unpacked."""
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"expected at most {MAX_PIXELS} pixels, got {image.width} x {image.height}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"expected one image, got {image.format} with {frames}")


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """An opened image as RGB uint8[h, w, 3], upright; a new array.

    Raises ImageError for what has no known range.
    """
    is_16_bit = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not is_16_bit and image.mode not in CONVERTED + WITH_ALPHA:
        raise ImageError(
            f"expected 8 or 16 bits a channel, got {image.format} of Pillow's mode {image.mode!r}"
        )
    upright = ImageOps.exif_transpose(image)
    if is_16_bit:
        return np.repeat(_eight_bits(np.asarray(upright))[..., None], 3, axis=2)
    if upright.mode in WITH_ALPHA or "transparency" in upright.info:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, (0, 0, 0, 255)), colours)
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """0 to 65535 -> 0 to 255, rounded."""
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
