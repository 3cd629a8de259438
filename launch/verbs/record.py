"""`trimvla record`: listen to a system that runs and write what travels to an MCAP file, until
Ctrl-C; and recordings as data sets or bags of ROS 2, and of bags.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.bags.results import BagResult, FromBagResult
from trimvla.launch.datasets.results import DataSetResult
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.client import SystemClient
from trimvla.launch.system.results import RecordingResult, recording_result
from trimvla.launch.system.signals import stop_event
from trimvla.launch.system.what_runs import find
from trimvla.runtime.bus.run_dir import check_run_dir
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record import recorder
from trimvla.runtime.record.recording import Recording


@dataclass(frozen=True)
class Args(Options):
    """Record a running system: images, state, chunks, commands and decisions.

    `run` and `demo` have `--record`.
    """

    file: Positional[Path]
    """The recording, usually *.mcap. It is called *.mcap.partial until it is complete."""

    run_dir: Path | None = None
    """Where the system's sockets are: the `--run-dir` of `trimvla run`. Left out with --lerobot or
    --ros2: then FILE is a recording that is there already.
    """

    lerobot: Path | None = None
    """Also write a LeRobot data set (v3.0) of the recording to this folder: one row a command, one
    episode a task (docs/guides/data-sets.md).
    """

    ros2: Path | None = None
    """Also write a bag of ROS 2 (rosbag2, MCAP) of the recording to this folder
    (docs/guides/ros2.md).
    """

    from_ros2: Path | None = None
    """Make FILE of this bag of ROS 2 (a folder with MCAP files), in place of a running system."""

    task: str | None = None
    """With --from-ros2: what the robot was to do; by default what the bag has on /instruction."""

    cameras: tuple[str, ...] = ()
    """Which camera, once for each (default: all whose sockets are there); with --from-ros2 as
    NAME=TOPIC (default: all topics with images).
    """

    seconds: float | None = None
    """Stop after this time."""

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to record, or two things at once."""
        made = [name for name in ("lerobot", "ros2") if getattr(self, name) is not None]
        if self.from_ros2 is not None and (self.run_dir is not None or self.seconds is not None):
            raise ConfigError("expected --from-ros2 without --run-dir and --seconds, got both")
        if self.task is not None and self.from_ros2 is None:
            raise ConfigError("expected --from-ros2 with --task, got none")
        if len(made) + (self.from_ros2 is not None) > 1:
            raise ConfigError("expected one of --lerobot, --ros2 and --from-ros2, got several")
        if self.from_ros2 is not None:
            return
        if self.run_dir is None and not made:
            raise ConfigError("expected --run-dir: where the system's sockets are, got none")
        if self.run_dir is None and (self.cameras or self.seconds is not None):
            raise ConfigError("expected --run-dir with --cameras and --seconds, got none")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        is_new = self.run_dir is not None or self.from_ros2 is not None
        made = (Output("the recording", self.file),) if is_new else ()
        folders = (("--lerobot", self.lerobot), ("--ros2", self.ros2))
        return (*made, *(Output(name, path, folder=True) for name, path in folders))


def run(args: Args) -> RecordingResult | DataSetResult | BagResult | FromBagResult:
    """Record until stopped, and make of it what is asked for; what the file or the folder holds."""
    if args.from_ros2 is not None:
        return of_bag(args, args.from_ros2)
    if args.run_dir is not None:
        recorded = record(args, args.run_dir)
        if not recorded.ok or (args.lerobot is None and args.ros2 is None):
            return recorded
    return data_set(args, args.lerobot) if args.lerobot is not None else bag(args)


def data_set(args: Args, folder: Path) -> DataSetResult:
    """A data set of the recording. Raises ConfigError, RecordingError."""
    from trimvla.launch.datasets.from_recording import write_data_set

    result = write_data_set(Recording(args.file), folder)
    cameras = ", ".join(result.cameras)
    words = f"{result.frames} rows of {result.episodes} episodes at {result.fps:g} Hz"
    args.console().print(f"{folder}: {words}, cameras {cameras}")
    return result


def bag(args: Args) -> BagResult:
    """A bag of the recording. Raises ConfigError, RecordingError."""
    from trimvla.launch.bags.to_ros import write_bag

    assert args.ros2 is not None
    result = write_bag(Recording(args.file), args.ros2)
    for name, count in sorted(result.topics.items()):
        args.console().print(f"{count:8d}  {name}")
    return result


def of_bag(args: Args, folder: Path) -> FromBagResult:
    """A recording of a bag. Raises ConfigError, RecordingError."""
    from trimvla.launch.bags.from_ros import write_recording

    result = write_recording(folder, args.file, cameras=args.cameras, task=args.task)
    words = f"{result.frames} images, {result.unknown_age} of unknown age"
    args.console().print(f"{args.file}: {words}, {result.messages} other messages")
    for reason, count in result.refused.items():
        args.console().print(f"left out {count}: {reason}")
    return result


def record(args: Args, run_dir: Path) -> RecordingResult:
    """Record until stopped; what the file holds."""
    stop = stop_event(watch_parent=False)
    if args.seconds is not None:
        threading.Timer(args.seconds, stop.set).start()
    check_run_dir(run_dir)
    config = find(args.file, args.cameras, run_dir, stop)
    with SystemClient(run_dir, processes=[recorder.NAME]) as client:
        cameras = ", ".join(config.cameras) or "no camera"
        args.console().print(f"recording {cameras} to {args.file}; Ctrl-C stops")
        try:
            recorder.run(config, run_dir, stop)
        except RecordingError as error:
            return RecordingResult(ok=False, file=args.file, error=str(error))
        client.last_report(recorder.NAME)
        last = client.reports().get(recorder.NAME)
    return recording_result(last, args.file)
