"""What one camera is: where its images come from, how large and how often, and how they travel.

Opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trimvla.runtime.bus.topics import CAMERA_NAME
from trimvla.runtime.bus.wire import Codec
from trimvla.runtime.errors import ConfigError

Kind = Literal["device", "video", "image", "synthetic", "lerobot"]
TimestampSource = Literal["driver", "read"]


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
    """Asked of devices and synthetic images; files keep their size."""
    codec: Codec = "raw_rgb8"
    """How a frame travels.

    `raw_rgb8` costs least; viewers of the registry's `camera-stream` may want `raw_bgr8`.
    """
    side: int | None = None
    """Shrink to a square of this side where the image is taken, exactly as the policy would:
    fewer bytes travel.
    """
    start_timeout_s: float = 5.0
    """Without a first image by then, the camera counts as not started."""
    swap_red_blue: bool = False
    """Exchange red and blue, for a source that has them the wrong way round."""
    allow_plain: bool = False
    """A LeRobot camera may be on another host; what it sends is not encrypted."""
    fourcc: str = ""
    """The pixel format of a device, such as MJPG or YUYV; the driver's own choice by default."""
    timestamps: TimestampSource = "driver"
    """When a device's images were taken: by the driver, which must be on a clock of this host,
    or when each was asked for (`read`), which is right only for a driver that keeps no old images.
    """

    def __post_init__(self) -> None:
        if not CAMERA_NAME.fullmatch(self.name):
            raise ConfigError(
                f"expected letters, digits, '_', '.' or '-', got {self.name!r} for 'name'"
            )
        if self.kind not in get_args(Kind) or self.codec not in get_args(Codec):
            raise ConfigError(f"unknown 'kind' {self.kind!r} or 'codec' {self.codec!r}")
        if not (
            self.hz > 0
            and self.start_timeout_s > 0
            and min(self.width, self.height, 1 if self.side is None else self.side) > 0
        ):
            raise ConfigError(
                "expected numbers above 0 for 'hz', 'start_timeout_s', 'width', 'height' and 'side'"
            )
        self._check_device()

    def _check_device(self) -> None:
        """Raise ConfigError for settings of devices that make no sense."""
        if self.timestamps not in get_args(TimestampSource):
            raise ConfigError(f"expected driver or read, got {self.timestamps!r} for 'timestamps'")
        if self.fourcc and not (
            len(self.fourcc) == 4 and self.fourcc.isascii() and self.fourcc.isprintable()
        ):
            raise ConfigError(
                f"expected four letters such as MJPG, got {self.fourcc!r} for 'fourcc'"
            )
        if self.kind != "device" and (self.fourcc or self.timestamps != "driver"):
            raise ConfigError(
                f"expected kind = 'device' with 'fourcc' or 'timestamps', got {self.kind!r}"
            )
