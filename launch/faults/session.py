"""One running system that faults happen to: started as `trimvla run` starts it, with an arm beside
it, and observed.

Knows what to start and to stop; neither what is broken nor what must follow.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trimvla.launch.faults.actions import MEND, RECORDING, TASK, Scene
from trimvla.launch.faults.desk import Desk
from trimvla.launch.faults.safety_monitor import SafetyMonitor
from trimvla.launch.faults.table import HZ, PROMISE, System, sections
from trimvla.launch.system.child import Child
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.setup.sections import Sections
from trimvla.runtime.clock import monotonic_ns

OBSERVED = ("policy", "control", "recorder", "arm")
TERMINAL = ("orphan", "hangup")  # systems that end with their last row


@dataclass
class Session:
    """A system, who observes it, and when it was started."""

    system: System
    scene: Scene
    monitor: SafetyMonitor
    began_ns: int


@contextmanager
def running(system: System, bundle: str) -> Iterator[Session]:
    """Start arm and system; all is stopped at the end."""
    with ExitStack() as stack:
        run_dir = stack.enter_context(temporary_run_dir())
        monitor = stack.enter_context(SafetyMonitor(run_dir, PROMISE, OBSERVED))
        scene = Scene(run_dir, bundle=bundle)
        MEND(scene)
        arm = {"arm": {"process": "sim-arm", "watchdog_s": 3 / HZ}}
        where = ["--run-dir", str(run_dir)]
        program = ["process", "arm", "--system", _write(run_dir / "arm.msgpack", arm)]
        _start("arm", [*program, "--supervised", *where], run_dir, stack)
        scene.desk = stack.enter_context(Desk(run_dir))
        file = _write(run_dir / "faults.msgpack", sections(bundle, system))
        began_ns = monotonic_ns()
        group = _start(
            "run", ["run", file, *_options(system, run_dir, stack), *where], run_dir, stack
        )
        scene.supervisor = group.pid
        if system == "desk":
            scene.desk.held = True
            scene.desk.pressed = False
            scene.desk.begin(TASK)
        yield Session(system, scene, monitor, began_ns)


def _options(system: System, run_dir: Path, stack: ExitStack) -> list[str]:
    """The options of `trimvla run` besides the file."""
    if system == "desk":
        return []
    task = ["--task", TASK]
    if system == "steady":
        return [*task, "--record", str(run_dir / RECORDING)]
    if system == "port":
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return [*task, "--metrics", str(taken.getsockname()[1])]
    return task


def _write(path: Path, settings: Sections) -> str:
    """A system's file."""
    path.write_bytes(msgspec.msgpack.encode(settings))
    return str(path)


def _start(name: str, words: list[str], run_dir: Path, stack: ExitStack) -> Child:
    """Start the program with these words; it is terminated at the end."""
    command = [sys.executable, "-m", "trimvla.launch.cli", *words]
    child = Child(name, command, run_dir / f"{name}.log")
    stack.callback(child.request_stop)
    stack.callback(child.terminate)
    return child
