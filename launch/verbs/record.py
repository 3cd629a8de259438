"""`trimvla record`: listen to a system that runs and write what travels to an MCAP file, until
Ctrl-C.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.client import SystemClient
from trimvla.launch.system.config import decode_file
from trimvla.launch.system.processes import SYSTEM_FILE, Sections
from trimvla.launch.system.results import RecordingResult, recording_result
from trimvla.launch.system.signals import stop_event
from trimvla.runtime.bus.network import used
from trimvla.runtime.bus.run_dir import check_run_dir
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record import recorder
from trimvla.runtime.record.recorder import RecorderConfig

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

    run_dir: Path
    """Where the system's sockets are: the `--run-dir` of `trimvla run`."""

    cameras: tuple[str, ...] = ()
    """Which camera, once for each (default: all whose sockets are there)."""

    seconds: float | None = None
    """Stop after this time."""

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("the recording", self.file),)


def run(args: Args) -> RecordingResult:
    """Record until stopped; what the file holds."""
    stop = stop_event(watch_parent=False)
    if args.seconds is not None:
        threading.Timer(args.seconds, stop.set).start()
    check_run_dir(args.run_dir)
    config = find(args, stop)
    with SystemClient(args.run_dir, processes=[recorder.NAME]) as client:
        cameras = ", ".join(config.cameras) or "no camera"
        args.console().print(f"recording {cameras} to {args.file}; Ctrl-C stops")
        try:
            recorder.run(config, args.run_dir, stop)
        except RecordingError as error:
            return RecordingResult(ok=False, file=args.file, error=str(error))
        client.last_report(recorder.NAME)
        last = client.reports().get(recorder.NAME)
    return recording_result(last, args.file)


def find(args: Args, stop: threading.Event) -> RecorderConfig:
    """What there is to record, by the sockets in the run directory.

    ConfigError if there is nothing.
    """
    found = sockets(args.run_dir)
    waited = 0.0
    quiet = 0.0
    while waited < FIND_S and not (any(found) and quiet >= SETTLE_S):
        if stop.wait(LOOK_S):
            break
        waited += LOOK_S
        before = found
        found = sockets(args.run_dir)
        quiet = quiet + LOOK_S if found == before else 0.0
    all_cameras, processes = found
    cameras = args.cameras or all_cameras
    if not cameras and not processes:
        raise ConfigError(f"expected the sockets of a running system in {args.run_dir}, got none")
    return RecorderConfig(str(args.file), cameras, processes, system=system(args.run_dir))


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
