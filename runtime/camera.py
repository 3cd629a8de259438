"""Cameras: where pictures come from, and the process that publishes them. Knows capture; not what is seen.

A source is anything with `read() -> uint8[h, w, 3]` and `close()`; one that knows when its last picture was taken says
so in `captured_ns`. OpenCV, which devices and video files need, is an extra and is imported when it is needed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trimvla.runtime.bus import Publisher
from trimvla.runtime.clock import NS_PER_S, Rate, monotonic_ns, utc_ns
from trimvla.runtime.errors import CameraError, ConfigError
from trimvla.runtime.foreign_thread import ForeignThread
from trimvla.runtime.lerobot import LeRobotSource
from trimvla.runtime.messages import Frame
from trimvla.runtime.preprocess import resize
from trimvla.runtime.specs import ArraySpec
from trimvla.runtime.telemetry import Reporter, Telemetry
from trimvla.runtime.topics import CAMERA_NAME, color, topic
from trimvla.runtime.wire import Codec, flip

Kind = Literal["device", "video", "image", "synthetic", "lerobot"]
Prepare = Callable[[np.ndarray], np.ndarray]
RECTANGLES = 8  # in a test image
PICTURE = ArraySpec("picture", "uint8", (None, None, 3))


@dataclass(frozen=True)
class CameraConfig:
    """One camera."""

    name: str = "front"
    """Name of the camera, and of its topic `<name>/color`."""
    kind: Kind = "device"
    where: str = "0"
    """A device's number or path, a file, or `tcp://host:port/name` of a LeRobot camera."""
    hz: float = 15.0
    width: int = 640
    height: int = 480
    """Asked of devices and synthetic pictures; files keep their size."""
    codec: Codec = "raw_rgb8"
    """How a frame travels. `raw_rgb8` costs least; viewers of the registry's `camera-stream` may want `raw_bgr8`."""
    side: int | None = None
    """Shrink to a square of this side where the picture is taken, exactly as the policy would: fewer bytes travel."""
    start_timeout_s: float = 5.0
    """Without a first picture by then, the camera counts as not started."""
    swap_red_blue: bool = False
    """Exchange red and blue, for a source that has them the wrong way round."""
    allow_plain: bool = False
    """A LeRobot camera may be on another host; what it sends is not encrypted."""

    def __post_init__(self) -> None:
        if not CAMERA_NAME.fullmatch(self.name):
            raise ConfigError(f"expected letters, digits, '_', '.' or '-', got {self.name!r} for 'name'")
        if self.kind not in SOURCES or self.codec not in get_args(Codec):
            raise ConfigError(f"unknown 'kind' {self.kind!r} or 'codec' {self.codec!r}")
        if not (
            self.hz > 0
            and self.start_timeout_s > 0
            and min(self.width, self.height, 1 if self.side is None else self.side) > 0
        ):
            raise ConfigError("expected numbers above 0 for 'hz', 'start_timeout_s', 'width', 'height' and 'side'")


class Source(Protocol):
    """Where pictures come from."""

    def read(self) -> NDArray[np.uint8]:
        """The next picture, RGB uint8[h, w, 3]; may wait for it. Raises CameraError if there is none."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


@runtime_checkable
class TimedSource(Protocol):
    """A source that knows when its last picture was taken."""

    captured_ns: int


class SyntheticSource:
    """Test images: colour ramps and rectangles that change with every image, and as no sensor, none comes again."""

    def __init__(self, config: CameraConfig) -> None:
        rows, columns = np.mgrid[: config.height, : config.width]
        ramps = [255 * rows // config.height, 255 * columns // config.width, np.zeros_like(rows)]
        self._background = np.stack(ramps, axis=-1).astype(np.uint8)
        self._rng = np.random.default_rng(0)

    def read(self) -> NDArray[np.uint8]:
        """The next image."""
        image = self._background.copy()
        height, width = image.shape[:2]
        for _ in range(RECTANGLES):
            top, left = self._rng.integers((height, width))
            image[top : top + height // 4 + 1, left : left + width // 4 + 1] = self._rng.integers(0, 256, 3)
        return image

    def close(self) -> None:
        """Nothing is held."""


class ImageSource:
    """The same picture from a file, again and again."""

    def __init__(self, config: CameraConfig) -> None:
        try:
            with Image.open(config.where) as picture:
                self._picture = np.array(picture.convert("RGB"))
        except OSError as error:
            raise CameraError(f"camera '{config.name}': cannot read picture '{config.where}': {error}") from None

    def read(self) -> NDArray[np.uint8]:
        """The picture."""
        return self._picture

    def close(self) -> None:
        """Nothing is held."""


class VideoSource:
    """A video file, from the start again when it ends."""

    def __init__(self, config: CameraConfig) -> None:
        self._cv2 = _opencv(config.name)
        self._capture = self._cv2.VideoCapture(config.where)
        self._words = f"camera '{config.name}': cannot read video '{config.where}'"

    def read(self) -> NDArray[np.uint8]:
        """The next picture."""
        ok, picture = self._capture.read()
        if not ok:
            self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, 0)
            ok, picture = self._capture.read()
        if not ok:
            raise CameraError(self._words)
        return flip(picture)

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class DeviceSource:
    """A camera that the operating system knows, through OpenCV."""

    def __init__(self, config: CameraConfig) -> None:
        cv2 = self._cv2 = _opencv(config.name)
        self._words = f"camera '{config.name}': device '{config.where}'"
        self._capture = cv2.VideoCapture(int(config.where) if config.where.isdigit() else config.where)
        if not self._capture.isOpened():
            raise CameraError(f"{self._words} cannot be opened")
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
        self._capture.set(cv2.CAP_PROP_FPS, config.hz)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not the next one in a queue
        self.captured_ns = 0

    def read(self) -> NDArray[np.uint8]:
        """The next picture."""
        asked_ns = monotonic_ns()
        ok, picture = self._capture.read()
        if not ok:
            raise CameraError(f"{self._words} gives no picture")
        driver_ns = round(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * 1e6)
        self.captured_ns = capture_time(driver_ns, asked_ns, monotonic_ns())
        return flip(picture)

    def close(self) -> None:
        """Release the device."""
        self._capture.release()


SOURCES: dict[Kind, Callable[[CameraConfig], Source]] = {
    "device": DeviceSource,
    "video": VideoSource,
    "image": ImageSource,
    "synthetic": SyntheticSource,
    "lerobot": lambda c: LeRobotSource(c.where, c.name, c.start_timeout_s, allow_plain=c.allow_plain),
}


def capture_time(driver_ns: int, asked_ns: int, now_ns: int) -> int:
    """The driver's time stamp where it is on our clock and of the last second, else when the picture was asked for."""
    return driver_ns if 0 <= now_ns - driver_ns < NS_PER_S else asked_ns


def _opencv(camera: str) -> Any:  # noqa: ANN401 - a module
    try:
        import cv2
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cv2"
        words = "pip install 'trimvla[camera]'" if absent else f"it is installed and cannot be imported: {error}"
        raise CameraError(f"camera '{camera}': devices and video files need OpenCV: {words}") from error
    return cv2


def start(open_source: Callable[[], Source], name: str, timeout_s: float) -> Source:
    """Open a source and see its first picture. Raises CameraError if that fails or takes longer than the timeout."""
    outcome: queue.Queue[Source | Exception] = queue.Queue()

    def attempt() -> None:
        try:
            source = open_source()
            PICTURE.validate(source.read())
            outcome.put(source)
        except Exception as error:  # handed over to the caller's thread
            outcome.put(error)

    ForeignThread(attempt, f"start-{name}").start()
    try:
        result = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise CameraError(f"camera '{name}': expected a first picture within {timeout_s:g} s, got none") from None
    if isinstance(result, Exception):
        raise result if isinstance(result, CameraError) else CameraError(f"camera '{name}': {result}") from result
    return result


def as_configured(config: CameraConfig, read: np.ndarray) -> np.ndarray:
    """What is published of a picture uint8[h, w, 3]: contiguous, its channels in order, shrunk where that is asked."""
    image = np.ascontiguousarray(flip(read) if config.swap_red_blue else read)
    return image if config.side is None else resize(image, config.side)


def take(source: Source, name: str, prepare: Prepare = np.ascontiguousarray) -> Frame:
    """The next picture with its time: the source's own, else when it was asked for, which is never too late."""
    asked_ns = monotonic_ns()
    image = prepare(source.read())
    time_ns = source.captured_ns if isinstance(source, TimedSource) else asked_ns
    return Frame(camera=name, time_ns=time_ns, image=image, utc_ns=utc_ns())


def stream(
    source: Source,
    frames: Publisher,
    hz: float,
    stop: threading.Event,
    reporter: Reporter,
    *,
    prepare: Prepare = np.ascontiguousarray,
) -> None:
    """Take, publish, keep time, until `stop`. Raises CameraError when the source ends."""
    camera, telemetry = frames.topic.name.rpartition("/")[0], reporter.telemetry
    telemetry.state = "streaming"
    rate = Rate(hz, sleep=stop.wait)
    while not stop.is_set():
        frame = take(source, camera, prepare)
        telemetry.time_ns("read", monotonic_ns() - frame.time_ns)
        frames.send(frame)
        telemetry.count("frames_published")
        reporter.beat()
        rate.wait()


def run(config: CameraConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `camera-<name>`. Raises CameraError if the camera does not start, or ends."""
    source = start(lambda: SOURCES[config.kind](config), config.name, config.start_timeout_s)
    frames = Publisher(run_dir, topic(color(config.name), config.hz), config.codec)
    reporter = Reporter(run_dir, Telemetry(f"camera-{config.name}"))
    try:
        stream(source, frames, config.hz, stop, reporter, prepare=partial(as_configured, config))
    finally:
        for closing in (reporter, frames, source):
            closing.close()
