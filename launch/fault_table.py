"""The table of faults, and the system that they happen to: real processes, real signals, real sockets.

Each row says what is done, what must follow, and how it is undone. Knows no result.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimvla.launch.witness import Promise
from trimvla.runtime.messages import Report
from trimvla.runtime.recording import partial
from trimvla.sim.faults import Fault, Kind, write_faults

HZ, FRAME_S, FROZEN_S, STATE_S, MAX_AGE_S = 5.0, 0.3, 0.3, 0.3, 0.8
LOW, HIGH = (-0.05,) * 3 + (-0.4,) * 3 + (0.0,), (0.05,) * 3 + (0.4,) * 3 + (1.0,)
MAX_CHANGE = (0.04,) * 3 + (0.3,) * 3 + (float("inf"),)
PROMISE = Promise(LOW, HIGH, MAX_CHANGE, HZ, MAX_AGE_S)
BOUND_S = MAX_AGE_S + 2 / HZ
"""From a fault to the hold: the age budget and two control periods."""
CAMERAS, CAMERA_HZ = ("front", "wrist"), 20.0
RECORDING = "faults.mcap"
TASK = "pick up the red cube"

Must = Literal["hold", "hold at times", "go on", "gate", "robot holds"]
# hold           no action from the bound on, until the fault is undone
# hold at times  a hold within the bound; what comes back by itself may act again
# go on          nothing that the robot notices
# gate           actions go on, brought back to the limits
# robot holds    nobody commands any more; the robot stops by itself
System = Literal["steady", "port", "orphan"]


def sections(bundle: str) -> dict[str, dict[str, Any]]:
    """The system: two cameras, policy and control. The arm is a process of its own, as a driver is."""
    cameras = {f"camera-{name}": {"process": "faulty-camera", "name": name, "hz": CAMERA_HZ} for name in CAMERAS}
    budget = {"frame_s": FRAME_S, "skew_s": 0.15, "frozen_s": FROZEN_S}
    policy = {"process": "faulty-policy", "bundle": bundle, "more_cameras": list(CAMERAS[1:]), "budget": budget}
    limits = {"low": LOW, "high": HIGH, "max_change": MAX_CHANGE}
    control = {"hz": HZ, "state_s": STATE_S, "limits": limits, "queue": {"max_age_s": MAX_AGE_S}}
    return {**cameras, "policy": {**policy, "max_hz": 20.0}, "control": control}


@dataclass(frozen=True)
class Scene:
    """Where a row's system runs, and who supervises it."""

    run_dir: Path
    supervisor: int = 0

    def pids(self) -> dict[str, int]:
        """Its processes by name, found by their command lines; the arm, which is not of the system, left out."""
        found: dict[str, int] = {}
        for path in Path("/proc").iterdir():
            words = _command_line(path)
            if path.name.isdigit() and str(self.run_dir) in words and "process" in words:
                found[words[words.index("process") + 1]] = int(path.name)
        return {name: pid for name, pid in found.items() if name != "arm"}


def _command_line(path: Path) -> list[str]:
    try:
        return (path / "cmdline").read_text().split("\0")
    except OSError:  # no process, or no longer
        return []


Deed = Callable[[Scene], None]


def send(process: str, number: signal.Signals) -> Deed:
    """A signal to a process."""
    return lambda scene: os.kill(scene.pids()[process], number)


def switch(**faults: Fault) -> Deed:
    """Faults turned on in running processes."""
    return lambda scene: write_faults(scene.run_dir, faults)


MEND = switch()


def fill_disk(scene: Scene) -> None:
    """No file of the recorder may grow any more: its next write fails, as on a full disk."""
    size = partial(scene.run_dir / RECORDING).stat().st_size
    resource.prlimit(scene.pids()["recorder"], resource.RLIMIT_FSIZE, (size, size))


def kill_supervisor(scene: Scene) -> None:
    """Not one of its processes: the one that started them."""
    os.kill(scene.supervisor, signal.SIGKILL)


def nothing(scene: Scene) -> None:
    """It was done when the system started, or undoes itself."""


@dataclass(frozen=True)
class Row:
    """One fault."""

    name: str
    must: Must
    do: Deed
    undo: Deed = MEND
    system: System = "steady"
    shows: Callable[[Scene, Callable[[str], Report]], bool] | None = None
    """How reports or logs show what no command does."""

    @property
    def at_start(self) -> bool:
        """Whether it is there from the system's start on."""
        return self.do is nothing


def _slow_camera(scene: Scene, said: Callable[[str], Report]) -> bool:
    return said("policy").values.get("camera_hz", CAMERA_HZ) < 0.85 * CAMERA_HZ


def _not_recorded(scene: Scene, said: Callable[[str], Report]) -> bool:
    return said("recorder").state == "failed"


def _no_metrics(scene: Scene, said: Callable[[str], Report]) -> bool:
    log = scene.run_dir / "metrics.log"
    return log.exists() and "error: metrics: cannot listen" in log.read_text()


def _both(kind: Kind, amount: float = 0.0) -> Deed:
    return switch(**{name: Fault(kind, amount) for name in CAMERAS})


def _policy(kind: Kind, amount: float = 0.0) -> Deed:
    return switch(policy=Fault(kind, amount))


ROWS = (
    Row("camera killed", "hold at times", send("camera-front", signal.SIGKILL), nothing),
    Row("camera frozen: same pixels, new sequence", "hold", switch(front=Fault("freeze"))),
    Row("30 % of frames dropped", "go on", _both("drop", 0.3), shows=_slow_camera),
    Row("frames delayed by 500 ms", "hold", _both("delay", 0.5)),
    Row("two cameras skewed by 300 ms", "hold", switch(wrist=Fault("delay", 0.3))),
    Row("corrupt payloads", "hold", _both("corrupt")),
    Row("NaN in actions", "hold", _policy("nan")),
    Row("infinite actions", "hold", _policy("inf")),
    Row("actions out of range", "gate", _policy("range")),
    Row("policy killed", "hold at times", send("policy", signal.SIGKILL), nothing),
    Row("policy stopped (SIGSTOP)", "hold", send("policy", signal.SIGSTOP), send("policy", signal.SIGCONT)),
    Row("policy 10 times slower", "hold at times", _policy("slow", 10.0)),
    Row("joint state lost", "hold", switch(arm=Fault("mute"))),
    Row("clock of the camera host off by an hour", "hold", _both("clock", 3600.0)),
    Row("disk full while recording", "go on", fill_disk, nothing, shows=_not_recorded),
    Row("port taken at start", "go on", nothing, nothing, "port", _no_metrics),
    Row("control killed", "robot holds", send("control", signal.SIGKILL), nothing, "port"),
    Row("supervisor killed", "robot holds", kill_supervisor, nothing, "orphan"),
)
