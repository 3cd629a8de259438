"""A video file as a camera.

Knows where a file ends and which of its frames are broken, which OpenCV answers alike.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.cameras.config import CameraConfig
from trimvla.runtime.cameras.device import from_opencv, opencv
from trimvla.runtime.errors import CameraError

log = logging.getLogger(__name__)
MAX_BROKEN = 1000  # failures in a row after which a video has ended


class VideoSource:
    """A video file, from the start again when it ends.

    Frames that cannot be decoded are passed over and counted.
    """

    def __init__(self, config: CameraConfig) -> None:
        """Open the file. Raises CameraError where there is none."""
        cv2 = self._cv2 = opencv(config.name)
        self._words = f"camera '{config.name}': cannot read video '{config.where}'"
        if not Path(config.where).is_file():
            raise CameraError(f"{self._words}: no such file")
        self._where = config.where
        self._capture = cv2.VideoCapture(config.where)
        # from the file's header; 0 or less where it has none
        self._length = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._reads = 0  # since the file's start
        self.skipped = 0
        """Frames passed over."""

    def read(self) -> NDArray[np.uint8]:
        """The next image that can be decoded.

        Raises CameraError where none can between the file's start and end.
        """
        for begin_again in (self._rewind, self._reopen, None):
            if (image := self._next()) is not None:
                return from_opencv(image, self._words)
            if begin_again is not None:
                begin_again()
        raise CameraError(f"{self._words}: nothing in it can be decoded")

    def _rewind(self) -> None:
        self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, 0)
        self._reads = 0

    def _reopen(self) -> None:
        """For a file without an index, such as one that is cut off: OpenCV finds no way back in
        it.
        """
        self._capture.open(self._where)
        self._reads = 0

    def _next(self) -> Any:  # noqa: ANN401 - what OpenCV gives
        """What can be decoded next; None at the file's end.

        A failure is the end once there were more reads than frames, or, for a file that does not
        know its length, after so many in a row that no frame can be broken.
        """
        for failed in range(MAX_BROKEN):
            ok, image = self._capture.read()
            self._reads += 1
            if ok:
                self._skip(failed)
                return image
            if 0 < self._length < self._reads:
                self._skip(failed)
                break
        return None

    def _skip(self, frames: int) -> None:
        if frames and not self.skipped:
            log.warning("%s in part: frames are passed over that cannot be decoded", self._words)
        self.skipped += frames

    def close(self) -> None:
        """Close the file."""
        self._capture.release()
