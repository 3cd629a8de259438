"""Images of ROS 2 as RGB pixels, and ours as messages. Pure.

Eight bits a channel in a known order are read, rows with padding too; everything else is refused
by name: what a depth image or a Bayer pattern shows is not for us to guess.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.wire import flip
from trimvla.runtime.errors import WireError
from trimvla.runtime.image_codec import PNG_MAGIC, decode_image
from trimvla.runtime.ros.cdr import COMPRESSED, IMAGE, header, make
from trimvla.runtime.specs import MAX_PIXELS

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""Encodings that are read. A fourth channel is left out, as cv_bridge does; mono becomes grey."""
JPEG_MAGIC = b"\xff\xd8"


def read_image(message: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - one of rosbags' classes
    """A sensor_msgs/Image as RGB uint8[h, w, 3], contiguous. `is_bigendian` means nothing for 8
    bits.

    Raises WireError that names the field.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        known = ", ".join(CHANNELS)
        raise WireError(f"expected one of {known} for 'encoding', got {message.encoding[:40]!r}")
    height = message.height
    width = message.width
    if not 0 < height * width <= MAX_PIXELS:
        raise WireError(f"expected 1 to {MAX_PIXELS} pixels, got {width} x {height}")
    if message.step < width * channels:
        least = width * channels
        raise WireError(f"expected at least {least} bytes a row for 'step', got {message.step}")
    if len(message.data) != height * message.step:
        raise WireError(
            f"expected {height * message.step} bytes for 'data', got {len(message.data)}"
        )
    rows = np.asarray(message.data, np.uint8).reshape(height, message.step)
    return _as_rgb(rows[:, : width * channels].reshape(height, width, channels), message.encoding)


def _as_rgb(pixels: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    if encoding == "mono8":
        return np.repeat(pixels, 3, axis=2)
    colours = pixels[..., :3]
    return flip(colours) if encoding.startswith("bgr") else np.ascontiguousarray(colours)


def packed_kind(message: Any) -> Literal["jpeg", "png"]:  # noqa: ANN401 - one of rosbags' classes
    """What a sensor_msgs/CompressedImage holds, by its first bytes: its `format` is free text.

    Raises WireError for anything but JPEG and PNG, depth images among them.
    """
    start = bytes(message.data[: len(PNG_MAGIC)])
    if "compresseddepth" not in message.format.lower():
        if start.startswith(JPEG_MAGIC):
            return "jpeg"
        if start == PNG_MAGIC:
            return "png"
    raise WireError(
        f"expected a JPEG or PNG file for 'data', got format {message.format[:60]!r} that begins"
        f" with {start!r}"
    )


def read_compressed(message: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - one of rosbags' classes
    """A sensor_msgs/CompressedImage as RGB uint8[h, w, 3]. Raises WireError."""
    return decode_image(bytes(message.data), packed_kind(message))


def image_message(
    data: bytes, encoding: str, size: tuple[int, int], time_ns: int, frame_id: str
) -> Any:  # noqa: ANN401 - one of rosbags' classes
    """Raw pixels as a sensor_msgs/Image; `size` is width and height, `time_ns` ROS time."""
    width, height = size
    return make(
        IMAGE,
        header=header(time_ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * CHANNELS[encoding],
        data=np.frombuffer(data, np.uint8),
    )


def compressed_message(data: bytes, kind: str, time_ns: int, frame_id: str) -> Any:  # noqa: ANN401 - one of rosbags' classes
    """A JPEG or PNG file as a sensor_msgs/CompressedImage; `time_ns` is ROS time."""
    head = header(time_ns, frame_id)
    return make(COMPRESSED, header=head, format=kind, data=np.frombuffer(data, np.uint8))
