"""What runs in a run directory, by its sockets: for one who records a system that others started.

Knows names of sockets; opens none.
"""

from __future__ import annotations

import threading
from pathlib import Path

from trimvla.launch.system.config import decode_file
from trimvla.launch.system.setup.programs import SYSTEM_FILE
from trimvla.launch.system.setup.sections import Sections
from trimvla.runtime.bus.network import used
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record.recorder import RecorderConfig

FIND_S = 10.0  # for sockets to appear
SETTLE_S = 1.0  # without a new one, and all are there: a system that starts makes one after another
LOOK_S = 0.1


def find(
    file: Path, chosen: tuple[str, ...], run_dir: Path, stop: threading.Event
) -> RecorderConfig:
    """What there is to record to `file`: the chosen cameras, else all, and everything else.

    Raises ConfigError if there is nothing.
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
    cameras = chosen or all_cameras
    if not cameras and not processes:
        raise ConfigError(f"expected the sockets of a running system in {run_dir}, got none")
    return RecorderConfig(str(file), cameras, processes, system=system(run_dir))


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
