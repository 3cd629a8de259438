"""Faults on purpose: a switch that turns them on in running processes, and a camera that has all of
a camera's faults.

For fault tables and tests alone; no system that drives a robot starts these. The switch is a file
in the run directory, `faults.json`: {"front": {"kind": "delay", "amount": 0.5}}, by the name of the
camera, `policy` or `arm`.
"""

from __future__ import annotations

import io
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
from PIL import Image

from trimvla.runtime.bus.messages import UNKNOWN_AGE, Frame
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.bus.wire import encode
from trimvla.runtime.cameras.driver_clock import DriverClock, Stamped
from trimvla.runtime.cameras.process import CameraConfig, SyntheticSource, take
from trimvla.runtime.clock import Rate, instant, monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError

FILE = "faults.json"
SEEN = "fault-seen-{name}"
#   of a camera: drop    this share of the images is lost on the way
#                delay   images come this much late [s], with their true capture times
#                freeze  the same pixels, with new sequence numbers and times
#                buffers the last so many images in turn, as a driver that hangs gives them (5)
#                reencode, overlay, pixel   the same image, as JPEG of changing quality, with a
#                        clock over this share of it (0.1), or with one pixel that changes
#                clock   capture times are off by this much [s]
#                driver  the driver's own clock, by which images are timed, is off by this much [s]
#                corrupt what travels is no image
#   of a policy: nan, inf, range   in its actions
#                sweep   the first dimension goes to and fro by this much a row
#                slow    a call takes at least this long [s]
#                fail    every call fails
#                lost    as after a lost CUDA context: no call can work until the process is
#                        another one
#                rate    its chunks claim to be this many times as fast
#                kinds   its chunks claim to be absolute targets
#                garble  what it publishes is no chunk
#   of an arm:   mute    it does not publish where it is
#                repeat  it publishes where it was, with new times
#                stuck   it does not follow its commands
Frozen = Literal["freeze", "buffers", "reencode", "overlay", "pixel"]
OfCamera = Literal["drop", "delay", "clock", "driver", "corrupt"]
OfPolicy = Literal[
    "nan", "inf", "range", "sweep", "slow", "fail", "lost", "rate", "kinds", "garble"
]
OfArm = Literal["mute", "repeat", "stuck"]
Kind = Literal[Frozen, OfCamera, OfPolicy, OfArm]
MOST_BUFFERS = 32
NOISE = 3  # of a sensor, at most, of 255


@dataclass(frozen=True)
class Fault:
    """One fault; `amount` as its kind means it."""

    kind: Kind
    amount: float = 0.0


def write_faults(run_dir: Path, faults: dict[str, Fault]) -> None:
    """Turn these faults on, and all others off."""
    for name in faults:
        (run_dir / SEEN.format(name=name)).unlink(missing_ok=True)
    fresh = run_dir / f".{FILE}"
    fresh.write_text(json.dumps({name: vars(fault) for name, fault in faults.items()}))
    fresh.replace(run_dir / FILE)


def seen_ns(run_dir: Path) -> int | None:
    """Since when all faults that are on are seen by their processes; None while one is not. 0
    without any.
    """
    faults = json.loads((run_dir / FILE).read_text())
    times: list[int] = []
    for name in faults:
        path = run_dir / SEEN.format(name=name)
        if not path.exists():
            return None
        times.append(int(path.read_text()))
    return max(times, default=0)


class Switch:
    """The fault of one process, as it is now.

    When it sees one, it records that in a file beside the switch.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self._path = run_dir / FILE
        self._name = name
        self._read_ns = -1
        self._fault = None

    def fault(self) -> Fault | None:
        """None where it is to do its work well.

        Raises ConfigError for a fault that there is not.
        """
        try:
            changed_ns = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if changed_ns != self._read_ns:
            self._fault = self._read()
            self._read_ns = changed_ns
            self._note()
        return self._fault

    def _note(self) -> None:
        seen = self._path.parent / SEEN.format(name=self._name)
        if self._fault is None:
            seen.unlink(missing_ok=True)
            return
        fresh = seen.with_suffix(".new")
        fresh.write_text(str(monotonic_ns()))
        fresh.replace(seen)

    def _read(self) -> Fault | None:
        found = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Fault]).get(self._name)
        if found is not None and found.kind not in get_args(Kind):
            raise ConfigError(
                f"expected one of {get_args(Kind)}, got {found.kind!r} for 'kind' in {self._path}"
            )
        return found


@dataclass(frozen=True)
class FaultyCameraConfig:
    """A camera with a test image and a sensor's noise. `side` is that of its square images."""

    name: str = "front"
    hz: float = 20.0
    side: int = 128


class FaultyPublisher(Publisher):
    """A publisher that can lose and damage what it sends."""

    def __enter__(self) -> FaultyPublisher:
        return self

    def lose(self) -> None:
        """Number a message and send nothing: what a network does."""
        self.sent += 1

    def send_damaged(self, frame: Frame, rng: np.random.Generator) -> None:
        """Send a frame with a cut payload, a broken header or a part missing."""
        name, header, payload = encode(self.topic, replace(frame, sequence=self.sent))
        cut = int(rng.integers(1, len(header)))
        damaged = (
            [name, header, payload[:-cut]],
            [name, header[:cut], payload],
            [name, header],
            [name, payload, header],
        )
        self._socket.send_multipart(damaged[int(rng.integers(len(damaged)))])
        self.sent += 1


class FrozenImages:
    """What a camera that is frozen in one of the ways gives instead of each new image."""

    def __init__(self, kind: Frozen, newest: Sequence[np.ndarray], amount: float = 0.0) -> None:
        """`newest`: the last images uint8[h, w, 3], the newest last; `amount` as the kind means it,
        0 its default.
        """
        self.kind: Frozen = kind
        self._amount = amount
        self._buffers = (
            list(newest)[-max(1, round(amount or 5)) :] if kind == "buffers" else [newest[-1]]
        )
        self._rng = np.random.default_rng(0)
        self._count = 0

    def next(self) -> np.ndarray:
        """The next image."""
        image = self._buffers[self._count % len(self._buffers)]
        self._count += 1
        return _DISGUISES[self.kind](image, self._rng, self._amount)


def _as_it_is(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    return image


def _encoded_anew(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "jpeg", quality=int(rng.integers(40, 96)))
    return np.array(Image.open(sink))


def _with_clock(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    image = image.copy()
    rows = max(1, round(image.shape[0] * (amount or 0.1)))
    image[:rows] = rng.integers(0, 256, image[:rows].shape, np.uint8)
    return image


def _with_pixel(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    image = image.copy()
    image[rng.integers(image.shape[0]), rng.integers(image.shape[1])] = rng.integers(0, 256, 3)
    return image


_DISGUISES: dict[Frozen, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]] = {
    "freeze": _as_it_is,
    "buffers": _as_it_is,
    "reencode": _encoded_anew,
    "overlay": _with_clock,
    "pixel": _with_pixel,
}


class FaultyCamera:
    """What becomes of each image under the fault that is on."""

    def __init__(self, frames: FaultyPublisher, switch: Switch) -> None:
        self._frames = frames
        self._switch = switch
        self._rng = np.random.default_rng(0)
        self._held: deque[Frame] = deque()
        self._newest: deque[np.ndarray] = deque(maxlen=MOST_BUFFERS)
        self._frozen: FrozenImages | None = None
        self._driver = DriverClock("monotonic")

    def show(self, frame: Frame) -> None:
        """Publish an image, or what the fault makes of it."""
        fault = self._switch.fault()
        kind = "" if fault is None else fault.kind
        amount = 0.0 if fault is None else fault.amount
        frame = self._time(frame, amount if kind == "driver" else 0.0)
        self._freeze(frame, fault)
        if kind == "corrupt":
            self._frames.send_damaged(frame, self._rng)
        elif kind == "drop" and self._rng.random() < amount:
            self._frames.lose()
        else:
            for due in self._due(frame, amount if kind == "delay" else 0.0):
                self._frames.send(self._alter(due, amount if kind == "clock" else 0.0))

    def _freeze(self, frame: Frame, fault: Fault | None) -> None:
        """Begin, go on or end to be frozen."""
        self._newest.append(frame.image)
        if fault is None or fault.kind not in _DISGUISES:
            self._frozen = None
        elif self._frozen is None or self._frozen.kind != fault.kind:
            self._frozen = FrozenImages(fault.kind, self._newest, fault.amount)

    def _time(self, frame: Frame, off_s: float) -> Frame:
        """As a driver stamps it, on CLOCK_MONOTONIC, and as its stamp is converted."""
        read = instant()
        stamp_ns = frame.time_ns + read.awake - read.ours + to_ns(off_s)
        taken_ns = self._driver.to_ours(Stamped(stamp_ns, read))
        if taken_ns is None:
            return replace(frame, time_ns=0, timestamp_source=UNKNOWN_AGE)
        return replace(frame, time_ns=taken_ns)

    def _due(self, frame: Frame, delay_s: float) -> Iterator[Frame]:
        """Those images whose time has come."""
        self._held.append(frame)
        while self._held and monotonic_ns() - self._held[0].time_ns >= to_ns(delay_s):
            yield self._held.popleft()

    def _alter(self, frame: Frame, off_s: float) -> Frame:
        image = frame.image if self._frozen is None else self._frozen.next()
        off_ns = to_ns(off_s)
        return replace(
            frame, image=image, time_ns=max(0, frame.time_ns + off_ns) if off_ns else frame.time_ns
        )


def add_noise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image uint8[h, w, 3] with a sensor's noise: a living camera never gives the same pixels
    twice.
    """
    noise = rng.integers(-NOISE, NOISE + 1, image.shape, np.int16)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def run(config: FaultyCameraConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `camera-<name>`."""
    source = SyntheticSource(
        CameraConfig(config.name, "synthetic", width=config.side, height=config.side)
    )
    frames = FaultyPublisher(run_dir, topic(color(config.name), config.hz))
    reporter = Reporter(run_dir, Telemetry(f"camera-{config.name}"))
    camera = FaultyCamera(frames, Switch(run_dir, config.name))
    rate = Rate(config.hz, sleep=stop.wait)
    rng = np.random.default_rng(0)
    reporter.telemetry.state = "streaming"
    try:
        while not stop.is_set():
            camera.show(take(source, config.name, partial(add_noise, rng)))
            reporter.telemetry.count("frames_published")
            reporter.beat()
            rate.wait()
    finally:
        for closing in (reporter, frames, source):
            closing.close()
