"""`trimvla camera`: publish one camera on a run directory's sockets, to look at it or to feed a
system that runs.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

from trimvla.launch.options import Options
from trimvla.launch.result import VerbResult
from trimvla.launch.system.client import SystemClient
from trimvla.launch.system.networking import use_network
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.signals import stop_event
from trimvla.runtime.bus.wire import Codec
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.cameras.process import CameraConfig, Kind


@dataclass(frozen=True)
class Args(Options):
    """Publish a camera, a file or a test image until Ctrl-C, as multipart frames on
    `<name>/color`.
    """

    kind: Kind = "device"
    """Where the images come from."""

    where: str = "0"
    """A device's number or path, a file, or `tcp://host:port/name` of a LeRobot camera."""

    name: str = "front"
    """Name of the camera, and of its topic."""

    hz: float = 15.0
    """Frames per second."""

    width: int = 640
    """Requested of devices and test images [pixels]."""

    height: int = 480
    """Requested of devices and test images [pixels]."""

    codec: Codec = "raw_rgb8"
    """How a frame travels."""

    run_dir: Path | None = None
    """Where the sockets are; a temporary directory by default."""

    network: Path | None = None
    """A TOML file with the topics that cross hosts and their keys."""

    swap_red_blue: bool = False
    """Exchange red and blue."""

    allow_plain: bool = False
    """A LeRobot camera may be on another host; what it sends is not encrypted."""

    seconds: float | None = None
    """Stop after this time."""

    def config(self) -> CameraConfig:
        """The camera's own configuration. Raises ConfigError for what is out of range."""
        names = {field.name for field in fields(CameraConfig)} & {
            field.name for field in fields(self)
        }
        return CameraConfig(**{name: getattr(self, name) for name in names})


class CameraResult(VerbResult, frozen=True, kw_only=True):
    """What was published."""

    camera: str
    """The camera's name."""
    run_dir: Path
    """Where its socket was."""
    frames_published: int | None = None
    """Images; like the counts below left out where the camera counted none."""
    frames_skipped: int | None = None
    """Images of a video that came too fast to be published."""
    frames_of_unknown_age: int | None = None
    """Images without a usable time stamp."""


def run(args: Args) -> CameraResult:
    """Publish until stopped; how many frames there were."""
    config = args.config()
    stop = stop_event(watch_parent=False)
    if args.seconds is not None:
        threading.Timer(args.seconds, stop.set).start()
    with temporary_run_dir() if args.run_dir is None else nullcontext(args.run_dir) as run_dir:
        use_network(args.network, run_dir)
        name = f"camera-{config.name}"
        with SystemClient(run_dir, processes=[name]) as client:
            place = f"'{config.name}/color' in {run_dir}"
            args.console().print(f"publishing {place}; Ctrl-C stops")
            camera.run(config, run_dir, stop)
            counters = client.last_report(name).counters
    return CameraResult(
        ok=True,
        camera=config.name,
        run_dir=run_dir,
        frames_published=counters.get("frames_published"),
        frames_skipped=counters.get("frames_skipped"),
        frames_of_unknown_age=counters.get("frames_of_unknown_age"),
    )
