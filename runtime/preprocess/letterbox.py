"""Images of any size -> the tensor, most often square, that a policy looks at, as each family's
public code makes it.

    stretch         Pillow's filter on uint8, sides by themselves; the one that also     CogACT, ACT
                    makes rectangles
    square-centre   padded to a square, then Pillow's filter                             Dexbotic
    pad-left-top    torch's bilinear without antialias on float32, then padded           SmolVLA in
                    LeRobot
    pad-centre      the same, padded on both sides; or Pillow's filter on uint8          pi0 in
                    LeRobot; in openpi

Pillow always antialiases when it shrinks, so torch's bilinear is two gathers and two blends here.
Knows no camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.inputs_and_output import ImagesSpec
from trimvla.runtime.errors import ObservationError, SpecError
from trimvla.runtime.specs import ArraySpec

IMAGE = ArraySpec("image", "uint8", (None, None, 3))
WHITE = 255.0
Rgb = tuple[float, float, float]


def check_image(image: object, name: str = "image") -> NDArray[np.uint8]:
    """The image, if it is RGB uint8[h, w, 3] with at least one pixel; ObservationError names it
    otherwise.
    """
    try:
        checked = ArraySpec(name, IMAGE.dtype, IMAGE.shape).validate(image)
    except SpecError as error:
        raise ObservationError(str(error)) from None
    if not checked.size:
        raise ObservationError(f"expected pixels in '{name}', got shape {list(checked.shape)}")
    return checked


def images_tensor(images: Mapping[str, NDArray[np.uint8]], spec: ImagesSpec) -> NDArray[Any]:
    """Images by camera -> `dtype`[cameras, height, width, 3]; an absent camera that is not required
    is all padding.

    Raises:
        ObservationError: an image that is no RGB uint8[h, w, 3], a camera that is missing, or one
            too many.
    """
    check_cameras(images, spec)
    made = [
        fit(check_image(images[camera.name], camera.name), spec)
        if camera.name in images
        else np.full((*spec.shape, 3), spec.pad_value, spec.dtype)
        for camera in spec.cameras
    ]
    return made[0][None] if len(made) == 1 else np.stack(made)


def check_cameras(images: Mapping[str, object], spec: ImagesSpec) -> None:
    """ObservationError where the images are not those of the cameras that the policy looks
    through.
    """
    missing = [
        camera.name for camera in spec.cameras if camera.required and camera.name not in images
    ]
    unknown = [name for name in images if name not in spec.names]
    if missing or unknown:
        words = f"missing {missing}" if missing else f"{unknown} too many"
        raise ObservationError(
            f"expected images of the cameras {list(spec.names)}, got"
            f" {sorted(map(str, images))}: {words}"
        )


def fit(image: NDArray[np.uint8], spec: ImagesSpec) -> NDArray[Any]:
    """RGB uint8[h, w, 3] -> `dtype`[height, width, 3]; the image itself where nothing is to be
    done.
    """
    if spec.resize == "bilinear":
        return _fit_float(image, spec)
    if spec.aspect == "square-centre":
        image = _pad(image, max(image.shape[:2]), spec, _as_pixels(spec))
    fitted = _resize(image, _size(image, spec), spec.resize)
    if spec.aspect != "stretch":
        fitted = _pad(fitted, spec.size, spec, _as_pixels(spec))
    return fitted if spec.dtype == "uint8" else _scaled(_unit(fitted), spec)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """RGB uint8[h, w, 3] -> uint8[size, size, 3], straight (no crop), bicubic with antialias on
    uint8.

    This is torchvision's resize of a PIL image, hence CogACT's. Raises ObservationError on
    another dtype or shape.
    """
    return _resize(check_image(image), (size, size), "bicubic-antialias")


def resize_bilinear(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """float32[h, w, c] -> float32[height, width, c]: torch's `interpolate(mode="bilinear",
    antialias=False)`.
    """
    above, below, down = _taps(image.shape[0], height)
    left, right, along = _taps(image.shape[1], width)
    along = along[None, :, None]
    down = down[:, None, None]
    rows = image[:, left] * (np.float32(1) - along) + image[:, right] * along
    return (rows[above] * (np.float32(1) - down) + rows[below] * down).astype(
        np.float32, copy=False
    )


def _fit_float(image: NDArray[np.uint8], spec: ImagesSpec) -> NDArray[np.float32]:
    if spec.aspect == "square-centre":
        image = _pad(image, max(image.shape[:2]), spec, _as_pixels(spec))
    unit = _unit(image)
    height, width = _size(image, spec)
    if image.shape[:2] != (height, width):
        unit = np.clip(resize_bilinear(unit, height, width), np.float32(0.0), np.float32(1.0))
    made = _scaled(unit, spec)
    return made if spec.aspect == "stretch" else _pad(made, spec.size, spec, spec.pad_value)


@lru_cache(maxsize=64)
def _taps(
    size: int, target: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For every target pixel: the two source pixels around its centre, and the weight of the
    second.

    Rounded once, as torch's fused multiply-add does it: at 640 pixels a second rounding moves a
    pixel by 3e-5.
    """
    scale = np.float64(np.float32(size) / np.float32(target))
    centre = np.maximum((np.arange(target) + 0.5) * scale - 0.5, 0.0).astype(np.float32)
    first = np.minimum(centre.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), centre - first.astype(np.float32)


def _size(image: NDArray[np.uint8], spec: ImagesSpec) -> tuple[int, int]:
    """Height and width after resizing."""
    if spec.aspect in ("stretch", "square-centre"):
        return spec.shape
    height, width = image.shape[:2]
    ratio = max(width / spec.size, height / spec.size)
    return max(1, int(height / ratio)), max(1, int(width / ratio))


def _resize(image: NDArray[np.uint8], size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """Pillow's filter on uint8, with antialias."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    chosen = Image.Resampling.BICUBIC if name == "bicubic-antialias" else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), chosen))


def _pad(image: NDArray[Any], side: int, spec: ImagesSpec, value: Rgb) -> NDArray[Any]:
    """`image` in a square of `side`: right at the bottom, or in the middle."""
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    top = side - height
    left = side - width
    if spec.aspect != "pad-left-top":
        top = top // 2
        left = left // 2
    square = np.empty((side, side, 3), image.dtype)
    square[:] = value
    square[top : top + height, left : left + width] = image
    return square


def _unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[0, 255] -> [0, 1]."""
    return np.divide(image, np.float32(WHITE), dtype=np.float32)


def _scaled(unit: NDArray[np.float32], spec: ImagesSpec) -> NDArray[np.float32]:
    """[0, 1] -> the spec's range."""
    low, high = spec.scale
    return unit if (low, high) == (0.0, 1.0) else unit * np.float32(high - low) + np.float32(low)


def _as_pixels(spec: ImagesSpec) -> Rgb:
    """The padding in units of uint8 pixels."""
    low, high = spec.scale
    red, green, blue = (
        min(WHITE, max(0.0, round((v - low) / (high - low) * WHITE))) for v in spec.pad_value
    )
    return red, green, blue
