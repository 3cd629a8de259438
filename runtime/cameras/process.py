"""Cameras: where images come from, and the process that publishes them.

Knows capture; not what is seen.

A source is anything with `read() -> uint8[h, w, 3]` and `close()`; one that knows when its last
image was taken has the time in `captured_ns`, and never puts the present in the place of a time
that it does not know. OpenCV, which devices and video files need, is an extra and is imported when
it is needed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import UNKNOWN_AGE, Frame
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.bus.wire import flip
from trimvla.runtime.cameras.config import CameraConfig, Kind
from trimvla.runtime.cameras.device import DeviceSource
from trimvla.runtime.cameras.lerobot import LeRobotSource
from trimvla.runtime.cameras.video import VideoSource
from trimvla.runtime.clock import Rate, monotonic_ns, to_ns
from trimvla.runtime.errors import CameraError, ImageError
from trimvla.runtime.foreign_thread import ForeignThread
from trimvla.runtime.images import read_image
from trimvla.runtime.log_limit import LimitedLog
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.runtime.specs import ArraySpec

TIMELESS_S = 5.0  # so long a source may go on without the times at which its images were taken
log = logging.getLogger(__name__)
limited_log = LimitedLog(log)
Prepare = Callable[[np.ndarray], np.ndarray]
RECTANGLES = 8  # in a test image
IMAGE = ArraySpec("image", "uint8", (None, None, 3))


class Source(Protocol):
    """Where images come from."""

    def read(self) -> NDArray[np.uint8]:
        """The next image, RGB uint8[h, w, 3]; may wait for it.

        Raises CameraError if there is none.
        """
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


class TimedSource(Protocol):
    """A source that knows when its last image was taken, or that this cannot be known: told by its
    having `captured_ns`, since a look at the whole protocol costs a tenth of an image.
    """

    captured_ns: int | None
    """None where it cannot be known.

    Who knew it stands in `timestamp_source`, where there is one.
    """


class LossySource(Protocol):
    """A source that passes over images which it cannot read, and counts them in `skipped`."""

    skipped: int


class SyntheticSource:
    """Test images: colour ramps and grey rectangles that change with every image, and as no
    sensor, none comes again. Cheap to make, since they stand for a camera that costs nothing.
    """

    def __init__(self, config: CameraConfig) -> None:
        rows, columns = np.mgrid[: config.height, : config.width]
        ramps = [255 * rows // config.height, 255 * columns // config.width, np.zeros_like(rows)]
        self._background = np.stack(ramps, axis=-1).astype(np.uint8)
        self._rng = np.random.default_rng(0)

    def read(self) -> NDArray[np.uint8]:
        """The next image."""
        image = self._background.copy()
        height, width = image.shape[:2]
        drawn = self._rng.integers((height, width, 256), size=(RECTANGLES, 3))
        for top, left, grey in drawn.tolist():
            image[top : top + height // 4 + 1, left : left + width // 4 + 1] = grey
        return image

    def close(self) -> None:
        """Nothing is held."""


class ImageSource:
    """The same image from a file, again and again; read once, so that a file which is replaced
    changes nothing.
    """

    def __init__(self, config: CameraConfig) -> None:
        try:
            self._picture = read_image(config.where)
        except ImageError as error:
            raise CameraError(f"camera '{config.name}': cannot read image: {error}") from None

    def read(self) -> NDArray[np.uint8]:
        """The image."""
        return self._picture

    def close(self) -> None:
        """Nothing is held."""


SOURCES: dict[Kind, Callable[[CameraConfig], Source]] = {
    "device": DeviceSource,
    "video": VideoSource,
    "image": ImageSource,
    "synthetic": SyntheticSource,
    "lerobot": lambda c: LeRobotSource(
        c.where, c.name, c.start_timeout_s, allow_plain=c.allow_plain
    ),
}


def start(open_source: Callable[[], Source], name: str, timeout_s: float) -> Source:
    """Open a source and see its first image.

    Raises CameraError if that fails or takes longer than the timeout.
    """
    outcome: queue.Queue[Source | Exception] = queue.Queue()

    def attempt() -> None:
        try:
            source = open_source()
            IMAGE.validate(source.read())
            outcome.put(source)
        except Exception as error:  # handed over to the caller's thread
            outcome.put(error)

    ForeignThread(attempt, f"start-{name}").start()
    try:
        result = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise CameraError(
            f"camera '{name}': expected a first image within {timeout_s:g} s, got none"
        ) from None
    if isinstance(result, Exception):
        raise (
            result if isinstance(result, CameraError) else CameraError(f"camera '{name}': {result}")
        ) from result
    return result


def as_configured(config: CameraConfig, read: np.ndarray) -> np.ndarray:
    """What is published of an image uint8[h, w, 3]: contiguous, its channels in order, shrunk
    where that is asked.
    """
    image = np.ascontiguousarray(flip(read) if config.swap_red_blue else read)
    return image if config.side is None else resize(image, config.side)


def take(source: Source, name: str, prepare: Prepare = np.ascontiguousarray) -> Frame:
    """The next image with its time: the source's own, else, where it is made, when it was asked
    for.
    """
    asked_ns = monotonic_ns()
    image = prepare(source.read())
    if not hasattr(source, "captured_ns"):
        return Frame(camera=name, time_ns=asked_ns, image=image)
    captured_ns = cast(TimedSource, source).captured_ns
    if captured_ns is None:
        return Frame(camera=name, time_ns=0, image=image, timestamp_source=UNKNOWN_AGE)
    knower = getattr(source, "timestamp_source", "driver")
    return Frame(camera=name, time_ns=captured_ns, image=image, timestamp_source=knower)


def stream(
    source: Source,
    frames: Publisher,
    hz: float,
    stop: threading.Event,
    reporter: Reporter,
    *,
    prepare: Prepare = np.ascontiguousarray,
) -> None:
    """Take, publish, keep time, until `stop`.

    Raises CameraError when the source ends, or its times do.
    """
    camera = frames.topic.name.rpartition("/")[0]
    telemetry = reporter.telemetry
    telemetry.state = "streaming"
    rate = Rate(hz, sleep=stop.wait)
    known_ns = monotonic_ns()
    before_ns: int | None = None
    while not stop.is_set():
        frame = take(source, camera, prepare)
        note_time(frame, telemetry)
        if before_ns is not None and frame.age_known:
            telemetry.time_ns("frame_period", frame.time_ns - before_ns)
        before_ns = frame.time_ns if frame.age_known else None
        known_ns = _check_times(frame, known_ns)
        frames.send(frame)
        telemetry.count("frames_published")
        if hasattr(source, "skipped"):
            telemetry.counters["frames_skipped"] = cast(LossySource, source).skipped
        reporter.beat()
        rate.wait()


def note_time(frame: Frame, telemetry: Telemetry) -> None:
    """Put the frame's age into the report, or that it has none; the beginning of a row of those
    also into the log.
    """
    was_known = telemetry.values.get("age_known", 1.0)
    telemetry.values["age_known"] = float(frame.age_known)
    if frame.age_known:
        telemetry.time_ns("read", monotonic_ns() - frame.time_ns)
        return
    telemetry.count("frames_of_unknown_age")
    if was_known:
        words = "camera '%s': an image without a usable time stamp; nobody acts on it"
        limited_log.warning(frame.camera, words, frame.camera)


def _check_times(frame: Frame, known_ns: int) -> int:
    """When a frame last had a known age.

    Raises CameraError if that is too long ago: a new start may find a clock.
    """
    now_ns = monotonic_ns()
    if not frame.age_known and now_ns - known_ns > to_ns(TIMELESS_S):
        raise CameraError(f"camera '{frame.camera}': no usable time stamp within {TIMELESS_S:g} s")
    return now_ns if frame.age_known else known_ns


def run(config: CameraConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `camera-<name>`. Raises CameraError if the camera does not start, or ends."""
    source = start(lambda: SOURCES[config.kind](config), config.name, config.start_timeout_s)
    frames = Publisher(run_dir, topic(color(config.name), config.hz), config.codec)
    reporter = Reporter(run_dir, Telemetry(f"camera-{config.name}"))
    reporter.telemetry.values[f"timestamps.{getattr(source, 'timestamp_source', 'host')}"] = 1.0
    try:
        stream(source, frames, config.hz, stop, reporter, prepare=partial(as_configured, config))
    finally:
        for closing in (reporter, frames, source):
            closing.close()
