"""The WidowX 250 of BridgeData as a driver, through the bridge on its host (`widowx_bridge`).

Steps are end-effector deltas and an absolute gripper, at 5 Hz; its image goes out as a camera.
Messages are JSON and raw pixels: nothing from there is unpickled. Knows the bridge's messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from trimvla.runtime.bundle.description import Description, Dimension, Quantity
from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.drivers.driver import Driver, DriverConfig, Reading
from trimvla.runtime.drivers.widowx_bridge import LIMITS, VERSION
from trimvla.runtime.errors import ConfigError, DriverError

NAMES = ("x", "y", "z", "roll", "pitch", "yaw")
UNITS = ("m", "m", "m", "rad", "rad", "rad")
MAX_BYTES = 32 << 20  # of a reply: an image
MAX_SIDE = 4096  # pixels


@dataclass(frozen=True)
class WidowXConfig(DriverConfig):
    """Where the bridge is, and the arm's rest."""

    address: str = "tcp://127.0.0.1:5560"
    """Of the bridge: an SSH tunnel to the robot's host."""
    camera: str = "front"
    """Under which name its image is published."""
    timeout_s: float = 1.0
    """An answer that takes longer means that the robot is gone [s]."""
    hz: float = 5.0
    """Commands a second."""
    state_hz: float = 10.0
    """How often it is observed, its image included [Hz]."""
    speed: float = 0.05
    """On its way to the rest [m/s]."""
    turn_speed: float = 0.25
    """Likewise [rad/s]."""
    rest: tuple[float, ...] = ()
    """Its safe pose: x, y, z [m]; it keeps its orientation. None: it stays where it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("timeout_s", "hz", "speed", "turn_speed"):
            if not 0 < getattr(self, name) < math.inf:
                got = getattr(self, name)
                raise ConfigError(f"expected a number above 0 for '{name}', got {got}")
        if len(self.rest) not in (0, 3):
            raise ConfigError(f"expected 3 numbers for 'rest', or none, got {list(self.rest)}")


class WidowX(Driver):
    """One arm behind its bridge."""

    def __init__(self, config: WidowXConfig) -> None:
        self._config = config
        self._socket: zmq.Socket[bytes] | None = None
        self._images: Publisher | None = None

    @classmethod
    def describe(cls, config: DriverConfig) -> Description | None:
        """See `Driver`: RobotBaseEnv's action space."""
        hz = getattr(config, "hz", 5.0)
        speeds = [getattr(config, "speed", 0.05)] * 3 + [getattr(config, "turn_speed", 0.25)] * 3
        steps = [
            Dimension(name, unit, "delta", -most, most, speed)
            for name, unit, most, speed in zip(NAMES, UNITS, LIMITS, speeds, strict=True)
        ]
        state = tuple(map(Quantity, NAMES, UNITS))
        grip = Dimension("gripper", "", "gripper", 0.0, 1.0, 1.0)
        return Description((*steps, grip), state, hz)

    @classmethod
    def published_cameras(cls, config: DriverConfig) -> Sequence[str] | None:
        """See `Driver`."""
        return (config.camera,) if isinstance(config, WidowXConfig) else None

    def connect(self, run_dir: Path) -> None:
        """See `Driver`. Raises DriverError where nobody answers."""
        socket = zmq.Context.instance().socket(zmq.REQ)
        self._socket = socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        socket.connect(self._config.address)
        self._ask(request="observe")
        name = color(self._config.camera)
        self._images = Publisher(run_dir, topic(name, self._config.state_hz))

    def read(self) -> Reading | None:
        """See `Driver`; publishes the image, no newer than the question was."""
        asked_ns = monotonic_ns()
        parts = self._ask(request="observe")
        header = _header(parts[0])
        state = header.get("state")
        if not isinstance(state, list) or len(state) != len(NAMES) + 1:
            raise DriverError(f"expected a state of 7 numbers from the bridge, got {state!r}")
        if self._images is not None:
            image = _image(header, parts)
            name = self._config.camera
            self._images.send(
                Frame(camera=name, time_ns=asked_ns, image=image, timestamp_source="read")
            )
        numbers = [float(value) for value in state]
        return numbers[:6], numbers[6]

    def write(self, action: Sequence[float]) -> None:
        """See `Driver`."""
        self._ask(request="step", action=[float(value) for value in action])

    def hold(self) -> None:
        """See `Driver`: it keeps its last target."""

    def safe_pose(self) -> Sequence[float] | None:
        """See `Driver`: `rest`."""
        return (*self._config.rest, *(math.nan,) * 4) if self._config.rest else None

    def disconnect(self) -> None:
        """See `Driver`."""
        if self._images is not None:
            self._images.close()
        if self._socket is not None:
            self._socket.close()

    def _ask(self, **request: object) -> list[bytes]:
        """The parts of an answer. Raises DriverError for none, or for a refusal."""
        if self._socket is None:
            raise DriverError("expected a bridge that is connected, got none")
        where = self._config.address
        try:
            self._socket.send(json.dumps({"version": VERSION, **request}).encode(), zmq.NOBLOCK)
            if not self._socket.poll(round(self._config.timeout_s * 1e3)):
                limit = f"within {self._config.timeout_s:g} s"
                raise DriverError(
                    f"expected an answer from the bridge at {where} {limit}, got none"
                )
            parts = self._socket.recv_multipart()
        except zmq.ZMQError as error:
            raise DriverError(f"the bridge at {where} does not answer: {error}") from error
        header = _header(parts[0])
        if header.get("ok") is not True:
            raise DriverError(f"the bridge at {where} refused {request['request']}: {header}")
        return parts


def _header(raw: bytes) -> Mapping[str, object]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise DriverError(f"expected JSON from the bridge, got: {error}") from None
    if not isinstance(header, dict):
        raise DriverError(f"expected an object from the bridge, got {type(header).__name__}")
    return header


def _image(header: Mapping[str, Any], parts: Sequence[bytes]) -> NDArray[np.uint8]:
    """RGB uint8[h, w, 3]. Raises DriverError for anything else."""
    shape = header.get("shape")
    fits = isinstance(shape, list) and len(shape) == 3 and shape[2] == 3
    fits = fits and all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in shape or ())
    size = int(np.prod(shape)) if fits and shape else 0
    if header.get("dtype") != "uint8" or len(parts) != 2 or len(parts[1]) != size:
        got = f"{header.get('dtype')}{shape} in {[len(part) for part in parts[1:]]} bytes"
        raise DriverError(f"expected an image of uint8[h, w, 3] from the bridge, got {got}")
    return np.frombuffer(parts[1], np.uint8).reshape(shape or ())
