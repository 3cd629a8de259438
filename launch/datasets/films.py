"""Films of a data set, frame by frame in RGB: MP4 with any codec that PyAV decodes, AV1 included.

Knows films; knows no data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import pointer_in

Image = NDArray[np.uint8]


def read_frames(path: Path, times: Sequence[float], fps: float) -> Iterator[Image]:
    """The frames uint8[h, w, 3] that are shown at the times [s], which must rise.

    One pass over the film from the first of them on: memory holds one frame.

    Raises:
        ConfigError: there is no such film, it is damaged, or it ends before the last of the times.
    """
    if not path.is_file():
        raise ConfigError(f"expected a film at {path}, got none")
    pointer = pointer_in(path)
    if pointer is not None:
        raise ConfigError(f"{path}: expected a film, got {pointer}")
    try:
        yield from _read(path, list(times), 0.5 / fps)
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{path}: expected a film that can be read, got: {error}") from None


def _read(path: Path, times: list[float], tolerance_s: float) -> Iterator[Image]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ConfigError(f"{path}: expected a film, got a file without images")
        stream = container.streams.video[0]
        if times and stream.time_base is not None:
            container.seek(int(times[0] / stream.time_base), stream=stream)  # the key frame before
        left = iter(times)
        wanted = next(left, None)
        last = -1.0
        for frame in container.decode(stream):
            if wanted is None:
                return
            if frame.time is None:
                continue
            last = frame.time
            if last < wanted - tolerance_s:
                continue
            image = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            while wanted is not None and last >= wanted - tolerance_s:
                if last > wanted + tolerance_s:
                    raise ConfigError(
                        f"{path}: expected a frame at {wanted:.3f} s, got the next at {last:.3f} s"
                    )
                yield image
                wanted = next(left, None)
        if wanted is not None:
            raise ConfigError(
                f"{path}: expected a frame at {wanted:.3f} s, got the film's end at {last:.3f} s"
            )
