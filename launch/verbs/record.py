"""`trimvla record`: listen to a system that runs and write what travels to an MCAP file, until
Ctrl-C.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.datasets.results import DataSetResult
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.client import SystemClient
from trimvla.launch.system.config import decode_file
from trimvla.launch.system.results import RecordingResult, recording_result
from trimvla.launch.system.setup.programs import SYSTEM_FILE
from trimvla.launch.system.setup.sections import Sections
from trimvla.launch.system.signals import stop_event
from trimvla.runtime.bus.network import used
from trimvla.runtime.bus.run_dir import check_run_dir
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record import recorder
from trimvla.runtime.record.recorder import RecorderConfig
from trimvla.runtime.record.recording import Recording

FIND_S = 10.0  # for sockets to appear
SETTLE_S = 1.0  # without a new one, and all are there: a system that starts makes one after another
LOOK_S = 0.1


@dataclass(frozen=True)
class Args(Options):
    """Record a running system: images, state, chunks, commands and decisions.

    `run` and `demo` have `--record`.
    """

    file: Positional[Path]
    """The recording, usually *.mcap. It is called *.mcap.partial until it is complete."""

    run_dir: Path | None = None
    """Where the system's sockets are: the `--run-dir` of `trimvla run`. Left out with --lerobot:
    then FILE is a recording that is there already.
    """

    lerobot: Path | None = None
    """Also write a LeRobot data set (v3.0) of the recording to this folder: one row a command, one
    episode a task (docs/guides/data-sets.md).
    """

    cameras: tuple[str, ...] = ()
    """Which camera, once for each (default: all whose sockets are there)."""

    seconds: float | None = None
    """Stop after this time."""

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to record."""
        if self.run_dir is None and self.lerobot is None:
            raise ConfigError("expected --run-dir: where the system's sockets are, got none")
        if self.run_dir is None and (self.cameras or self.seconds is not None):
            raise ConfigError("expected --run-dir with --cameras and --seconds, got none")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        made = () if self.run_dir is None else (Output("the recording", self.file),)
        return (*made, Output("--lerobot", self.lerobot, folder=True))


def run(args: Args) -> RecordingResult | DataSetResult:
    """Record until stopped, and make a data set of it; what the file or the folder holds."""
    if args.run_dir is None:
        return data_set(args)
    recorded = record(args, args.run_dir)
    return recorded if args.lerobot is None or not recorded.ok else data_set(args)


def data_set(args: Args) -> DataSetResult:
    """A data set of the recording. Raises ConfigError, RecordingError."""
    from trimvla.launch.datasets.from_recording import write_data_set

    assert args.lerobot is not None
    result = write_data_set(Recording(args.file), args.lerobot)
    cameras = ", ".join(result.cameras)
    words = f"{result.frames} rows of {result.episodes} episodes at {result.fps:g} Hz"
    args.console().print(f"{args.lerobot}: {words}, cameras {cameras}")
    return result


def record(args: Args, run_dir: Path) -> RecordingResult:
    """Record until stopped; what the file holds."""
    stop = stop_event(watch_parent=False)
    if args.seconds is not None:
        threading.Timer(args.seconds, stop.set).start()
    check_run_dir(run_dir)
    config = find(args, run_dir, stop)
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


def find(args: Args, run_dir: Path, stop: threading.Event) -> RecorderConfig:
    """What there is to record, by the sockets in the run directory.

    ConfigError if there is nothing.
    """
    found = sockets(run_dir)
    waited = 0.0
    quiet = 0.0
    while waited < FIND_S and not (any(found) and quiet >= SETTLE_S):
        if stop.wait(LOOK_S):
            break
        waited += LOOK_S
        before = found
        found = sockets(run_dir)
        quiet = quiet + LOOK_S if found == before else 0.0
    all_cameras, processes = found
    cameras = args.cameras or all_cameras
    if not cameras and not processes:
        raise ConfigError(f"expected the sockets of a running system in {run_dir}, got none")
    return RecorderConfig(str(args.file), cameras, processes, system=system(run_dir))


def sockets(run_dir: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cameras and the processes that have a socket now."""
    return owners(run_dir, "color"), owners(run_dir, "report")


def owners(run_dir: Path, kind: str) -> tuple[str, ...]:
    """Who has a socket of this kind, here or on another host: cameras `color`, processes
    `report`.
    """
    here = {
        path.name.removesuffix(f"-{kind}") for path in run_dir.glob(f"*-{kind}") if path.is_socket()
    }
    there = {
        name.removesuffix(f"/{kind}") for name in used(run_dir).topics if name.endswith(f"/{kind}")
    }
    return tuple(sorted(here | there))


def system(run_dir: Path) -> Sections:
    """How the system was configured, where `trimvla run` started it."""
    path = run_dir / SYSTEM_FILE
    return decode_file(path) if path.exists() else {}
