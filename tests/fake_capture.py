"""A camera's driver, as OpenCV shows one: a queue of images that fills in real time, whatever
anybody reads.

Stands in for `cv2.VideoCapture`, for there is no camera device where tests run. Each image shows
when it was taken: its first eight bytes are the time of this host's clock, so that a test can
compare what is claimed with what is true.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from trimvla.runtime.clock import NS_PER_MS, monotonic_ns

CV2 = {"WIDTH": 3, "HEIGHT": 4, "FPS": 5, "FOURCC": 6, "BUFFERSIZE": 38, "POS_MSEC": 0}


def no_clock(taken_ns: int) -> float:
    """What drivers without times say [ms]."""
    return 0.0


def monotonic(taken_ns: int) -> float:
    """CLOCK_MONOTONIC of an image taken then [ms], as V4L2 stamps."""
    return (taken_ns + time.monotonic_ns() - monotonic_ns()) / NS_PER_MS


def wall(taken_ns: int) -> float:
    """CLOCK_REALTIME of an image taken then [ms]."""
    return (taken_ns + time.time_ns() - monotonic_ns()) / NS_PER_MS


class Driver:
    """Takes an image each period and hands out the oldest that it keeps, `delay_s` after it was
    taken.
    """

    def __init__(
        self,
        stamp: Callable[[int], float] = monotonic,
        *,
        hz: float = 50.0,
        delay_s: float = 0.0,
        kept: int = 4,
        pixels: tuple[str, ...] = ("YUYV", "MJPG"),
    ) -> None:
        """`kept`: images at most that wait; while they do, new ones are lost, as V4L2 does it."""
        self.stamp = stamp
        self.delay_s = delay_s
        self._kept = kept
        self._pixels = pixels
        self._period_ns = round(1e9 / hz)
        self._queue: deque[int] = deque()
        self._next_ns = monotonic_ns()
        self._taken_ns = 0
        self._stamp_ms = 0.0
        self._numbers: dict[int, float] = {
            CV2["FOURCC"]: _code(pixels[0]),
            CV2["WIDTH"]: 32,
            CV2["HEIGHT"]: 24,
        }
        self.released = False

    def __call__(self, where: object) -> Driver:
        """Opened as `cv2.VideoCapture(where)`."""
        return self

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def set(self, number: int, value: float) -> bool:
        """A setting; a pixel format that there is not stays what it was."""
        known = number != CV2["FOURCC"] or value in map(_code, self._pixels)
        if known and number not in (CV2["WIDTH"], CV2["HEIGHT"]):
            self._numbers[number] = value
        return known

    def get(self, number: int) -> float:
        return self._stamp_ms if number == CV2["POS_MSEC"] else self._numbers.get(number, 0.0)

    def _fill(self) -> None:
        while self._next_ns <= monotonic_ns():
            if len(self._queue) < self._kept:
                self._queue.append(self._next_ns)
            self._next_ns += self._period_ns

    def grab(self) -> bool:
        self._fill()
        while not self._queue:
            time.sleep(max(0.0, (self._next_ns - monotonic_ns()) / 1e9))
            self._fill()
        self._taken_ns = self._queue.popleft() - round(self.delay_s * 1e9)
        self._stamp_ms = self.stamp(self._taken_ns)
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        image = np.zeros((24, 32, 3), np.uint8)
        image[0, :8, 0] = np.frombuffer(self._taken_ns.to_bytes(8, "little"), np.uint8)
        return True, image

    def read(self) -> tuple[bool, np.ndarray]:
        self.grab()
        return self.retrieve()

    def release(self) -> None:
        self.released = True


def taken_ns(image: np.ndarray) -> int:
    """When an image of `Driver` was taken in truth; RGB, so what was written as blue is in channel
    2.
    """
    return int.from_bytes(image[0, :8, 2].tobytes(), "little")


def _code(letters: str) -> float:
    return float(int.from_bytes(letters.encode(), "little"))


def numbers(cv2: Any) -> dict[str, int]:
    """OpenCV's own numbers of the settings above, to see that they are these."""
    names = {"WIDTH": "FRAME_WIDTH", "HEIGHT": "FRAME_HEIGHT"}
    return {name: getattr(cv2, f"CAP_PROP_{names.get(name, name)}") for name in CV2}
