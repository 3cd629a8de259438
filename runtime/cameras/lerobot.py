"""Cameras of LeRobot's image server: one JSON text with base64 JPEG images of all of them.

Knows its form alone.

That server encodes RGB as if it were BGR and its reader undoes that, so what stands in the JPEG has
red and blue exchanged; so do we. Its time stamps are wall-clock seconds and there is no sequence
number and no encryption.
"""

from __future__ import annotations

import base64
import math
from urllib.parse import urlsplit

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from trimvla.runtime.bus.curve import check_plain
from trimvla.runtime.bus.topics import MIB
from trimvla.runtime.cameras.driver_clock import PROBES, DriverClock, Stamped, find_clock
from trimvla.runtime.clock import instant, monotonic_ns, to_ns
from trimvla.runtime.errors import CameraError, ConfigError, WireError
from trimvla.runtime.image_codec import decode_image
from trimvla.runtime.ports import check_endpoint

MAX_BYTES = 32 * MIB
MAX_COMMAS = 1000  # each may be an entry of a map; cameras are few


class _Pictures(msgspec.Struct):
    images: dict[str, str]
    timestamps: dict[str, float] = {}


_decoder = msgspec.json.Decoder(_Pictures)


def decode(raw: bytes, camera: str) -> tuple[NDArray[np.uint8], float | None]:
    """One camera's image, RGB uint8[h, w, 3], and its wall-clock time [s].

    Raises WireError and nothing else.
    """
    if len(raw) > MAX_BYTES:
        raise WireError(f"expected at most {MAX_BYTES} bytes from a LeRobot camera, got {len(raw)}")
    if raw.count(b",") > MAX_COMMAS:  # none is in base64
        raise WireError(
            f"expected at most {MAX_COMMAS} commas in a message of LeRobot's images, got more"
        )
    try:
        pictures = _decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"no LeRobot images: {error}") from None
    if camera not in pictures.images:
        names = ", ".join(sorted(pictures.images)[:8]) or "none"
        raise WireError(f"expected an image of '{camera[:64]}', got {names[:200]}")
    return _unpack(pictures.images[camera]), pictures.timestamps.get(camera)


def _unpack(text: str) -> NDArray[np.uint8]:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:  # no base64, or not even ASCII
        raise WireError(f"expected base64 in 'images', got: {error}") from None
    return decode_image(data, "jpeg")[..., ::-1]


def _as_ns(taken_s: float | None) -> int:
    """Seconds as nanoseconds; 0, which is no time, where there are none."""
    return to_ns(taken_s) if taken_s is not None and math.isfinite(taken_s) else 0


class LeRobotSource:
    """The newest image of one camera of a LeRobot image server at `tcp://host:port/name`."""

    def __init__(
        self, where: str, camera: str, timeout_s: float, *, allow_plain: bool = False
    ) -> None:
        """Connect; `camera` where the address names none.

        Raises CameraError for an address that is none.
        """
        parts = urlsplit(where)
        self._name = parts.path.strip("/") or camera
        self._words = f"camera '{camera}': '{where}'"
        self._timeout_ns = to_ns(timeout_s)
        self.captured_ns: int | None = None
        self.timestamp_source = "server"
        self._clock: DriverClock | None = None
        endpoint = f"{parts.scheme}://{parts.netloc}"
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        try:
            check_plain(endpoint, allow_plain)
            check_endpoint(endpoint, "its address")
            for option, value in ((zmq.LINGER, 0), (zmq.CONFLATE, 1), (zmq.MAXMSGSIZE, MAX_BYTES)):
                self._socket.setsockopt(option, value)
            self._socket.subscribe(b"")
            self._socket.connect(endpoint)
        except (zmq.ZMQError, ConfigError) as error:
            self._socket.close(0)
            raise CameraError(f"{self._words}: {error}") from None

    def read(self) -> NDArray[np.uint8]:
        """The next image, and when it was taken in `captured_ns`.

        Raises CameraError where none comes in time, and at first where its times are not on this
        host's wall clock.
        """
        if self._clock is None:
            self._clock = self._find_clock()
        picture, stamped = self._receive()
        self.captured_ns = self._clock.to_ours(stamped)
        return picture

    def _find_clock(self) -> DriverClock:
        """Over the first images, which are passed over."""
        probes = [self._receive()[1] for _ in range(PROBES)]
        try:
            return DriverClock(find_clock(probes, ("wall",)))
        except CameraError as error:
            raise CameraError(f"{self._words}: {error}; the hosts' clocks must agree") from None

    def _receive(self) -> tuple[NDArray[np.uint8], Stamped]:
        """The next image; messages that are none are passed over."""
        deadline = monotonic_ns() + self._timeout_ns
        problem = "nothing came"
        while (left_ns := deadline - monotonic_ns()) > 0:
            if not self._socket.poll(left_ns // 1_000_000):
                continue
            try:
                picture, taken_s = decode(self._socket.recv(), self._name)
            except WireError as error:
                problem = str(error)
                continue
            return picture, Stamped(_as_ns(taken_s), instant())
        raise CameraError(f"{self._words} gives no image: {problem}")

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(0)
