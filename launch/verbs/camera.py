"""`trimvla camera`: publish one camera on a run directory's sockets, to look at it or to feed a
system that runs.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

from trimvla.launch.options import Options, Result
from trimvla.launch.system.networking import use_network
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.signals import stop_event
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.bus.wire import Codec
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.cameras.process import CameraConfig, Kind


@dataclass(frozen=True)
class Args(Options):
    """Publish a camera, a file or a test picture until Ctrl-C, as multipart frames on
    `<name>/color`.
    """

    kind: Kind = "device"
    """Where the pictures come from."""

    where: str = "0"
    """A device's number or path, a file, or `tcp://host:port/name` of a LeRobot camera."""

    name: str = "front"
    """Name of the camera, and of its topic."""

    hz: float = 15.0
    """Frames per second."""

    width: int = 640
    """Asked of devices and test pictures [pixels]."""

    height: int = 480
    """Asked of devices and test pictures [pixels]."""

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


def run(args: Args) -> Result:
    """Publish until told to stop; how many frames there were."""
    config = args.config()
    stop = stop_event(watch_parent=False)
    if args.seconds is not None:
        threading.Timer(args.seconds, stop.set).start()
    with temporary_run_dir() if args.run_dir is None else nullcontext(args.run_dir) as run_dir:
        use_network(args.network, run_dir)
        name = f"camera-{config.name}"
        with Subscriber(run_dir, [topic(report(name))]) as reports:
            args.console().print(f"publishing '{config.name}/color' in {run_dir}; Ctrl-C stops")
            camera.run(config, run_dir, stop)
            reports.wait_for(report(name), timeout_s=1.0)
            last = reports[report(name)].message
    counters = last.counters if isinstance(last, Report) else {}
    return {"ok": True, "camera": config.name, "run_dir": run_dir, **counters}
