"""A camera that the operating system knows, through OpenCV.

Knows its settings and when its images were taken.

What was asked for is read back. A pixel format that was named must be the one that comes; a size or
rate that differs is logged. An image has the driver's own time, on a clock of this host
(`driver_clock`), or, where the configuration chooses it, the time at which it was requested. OpenCV
is an extra and is imported when it is needed.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.wire import flip
from trimvla.runtime.cameras.config import CameraConfig
from trimvla.runtime.cameras.driver_clock import PROBES, DriverClock, Stamped, find_clock
from trimvla.runtime.clock import NS_PER_MS, instant, monotonic_ns, to_ns
from trimvla.runtime.errors import CameraError, SpecError
from trimvla.runtime.specs import ArraySpec

log = logging.getLogger(__name__)
IMAGE = ArraySpec("image", "uint8", (None, None, 3))
RETRY_S = 1.0  # for so long a device is asked again that gives no image
HELD_BACK = 8  # images that a driver without times may have kept
GAP_S = 0.25  # after so long without a read, or two periods, they are passed over
READ_HINT = (
    "; without the driver's own times no image has a known age. Set timestamps = 'read'"
    " (--timestamps read) only for a driver that keeps no old images, such as GStreamer's appsink"
    " with drop=1 max-buffers=1"
)


def opencv(camera: str) -> Any:  # noqa: ANN401 - a module
    """The module cv2. Raises CameraError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cv2"
        words = (
            "pip install 'trimvla[camera]'"
            if absent
            else f"it is installed and cannot be imported: {error}"
        )
        raise CameraError(
            f"camera '{camera}': devices and video files need OpenCV: {words}"
        ) from error
    return cv2


def from_opencv(image: Any, words: str) -> NDArray[np.uint8]:  # noqa: ANN401 - whatever OpenCV gives
    """BGR uint8[h, w, 3] as RGB.

    Raises CameraError for what it is not, such as the 16-bit grey of a depth camera.
    """
    try:
        IMAGE.validate(image)
    except SpecError as error:
        raise CameraError(f"{words}: {error}") from None
    return flip(image)


class DeviceSource:
    """A device; its driver's clock is found with its first images, which are passed over."""

    def __init__(self, config: CameraConfig) -> None:
        """Open.

        Raises CameraError where that fails, for a pixel format that it has not, and for times of no
        clock.
        """
        cv2 = self._cv2 = opencv(config.name)
        self._words = f"camera '{config.name}': device '{config.where}'"
        self.timestamp_source: str = config.timestamps
        self._period_ns = to_ns(1 / config.hz)
        self._gap_ns = max(to_ns(GAP_S), 2 * self._period_ns)
        self.captured_ns: int | None = None
        self._asked_ns = 0
        self.skipped = 0
        """Images that could not be read."""
        self._capture = cv2.VideoCapture(
            int(config.where) if config.where.isdigit() else config.where
        )
        if not self._capture.isOpened():
            raise CameraError(f"{self._words} cannot be opened")
        try:
            self._set(config)
            self.clock = self._find_clock() if config.timestamps == "driver" else None
        except CameraError:
            self.close()
            raise

    def _set(self, config: CameraConfig) -> None:
        """Ask for the settings and read them back.

        The pixel format comes first: sizes and rates depend on it.
        """
        cv2 = self._cv2
        if config.fourcc:
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.fourcc))
        wishes = {
            "width": (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            "height": (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
            "hz": (cv2.CAP_PROP_FPS, config.hz),
        }
        for number, value in wishes.values():
            self._capture.set(number, value)
        # the newest image, not the next one in a queue
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        found = as_fourcc(self._capture.get(cv2.CAP_PROP_FOURCC))
        if config.fourcc and found != config.fourcc:
            raise CameraError(
                f"{self._words}: expected pixels as {config.fourcc!r} for 'fourcc', got {found!r}"
            )
        log.info("%s: pixels as %r", self._words, found)
        for name, (number, value) in wishes.items():
            got = self._capture.get(number)
            if got != value:
                log.warning("%s: asked for %g for '%s', got %g", self._words, value, name, got)

    def _find_clock(self) -> DriverClock:
        probes: list[Stamped] = []
        for _ in range(PROBES):
            self._grab()
            probes.append(self._stamped())
        try:
            clock = find_clock(probes)
        except CameraError as error:
            raise CameraError(f"{self._words}: {error}{READ_HINT}") from None
        found = DriverClock(clock)
        last = probes[-1]
        age_ms = (last.read.ours - (found.to_ours(last) or 0)) / NS_PER_MS
        log.info(
            "%s: its times are on the clock '%s'; an image is %.0f ms old when read",
            self._words,
            clock,
            age_ms,
        )
        return found

    def read(self) -> NDArray[np.uint8]:
        """The next image, RGB uint8[h, w, 3]. Raises CameraError if there is none for `RETRY_S`.

        A driver that fails at times, or whose image is damaged on the way, is asked again.
        """
        if self.clock is None:
            self._pass_over_kept()
        until_ns = monotonic_ns() + to_ns(RETRY_S)
        while (image := self._take()) is None:
            if monotonic_ns() > until_ns:
                raise CameraError(f"{self._words} gives no image")
            self.skipped += 1
            time.sleep(RETRY_S / 100)  # some drivers fail at once
        return from_opencv(image, self._words)

    def _take(self) -> Any:  # noqa: ANN401 - what OpenCV gives
        """The next image, with its time noted; None where the driver gives none, or none that can
        be decoded.
        """
        if not self._try_grab():
            return None
        self.captured_ns = (
            self._asked_ns if self.clock is None else self.clock.to_ours(self._stamped())
        )
        ok, image = self._capture.retrieve()
        return image if ok else None

    def _pass_over_kept(self) -> None:
        """After a time without reads, pass over what the driver kept meanwhile: until it has to
        wait for an image.
        """
        if monotonic_ns() - self._asked_ns <= self._gap_ns:
            return
        for _ in range(HELD_BACK):
            if not self._try_grab() or monotonic_ns() - self._asked_ns > self._period_ns // 2:
                return

    def _grab(self) -> None:
        """Take the next image from the driver, still packed."""
        if not self._try_grab():
            raise CameraError(f"{self._words} gives no image")

    def _try_grab(self) -> bool:
        asked_ns = monotonic_ns()
        if not self._capture.grab():
            return False
        self._asked_ns = asked_ns
        return True

    def _stamped(self) -> Stamped:
        milliseconds = self._capture.get(self._cv2.CAP_PROP_POS_MSEC)
        return Stamped(
            round(milliseconds * NS_PER_MS) if math.isfinite(milliseconds) else 0, instant()
        )

    def close(self) -> None:
        """Release the device."""
        self._capture.release()


def as_fourcc(number: float) -> str:
    """OpenCV's number of a pixel format as its four letters."""
    code = int(number) & 0xFFFFFFFF
    return code.to_bytes(4, "little").decode("ascii", errors="replace")
