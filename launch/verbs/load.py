"""`trimvla load`: four cameras, a slow policy, a fast control loop: is anything late, lost or
growing?

Real processes over real sockets, as `run` starts them: cameras with test images, a policy that
computes without sense for as long as a real one, the control loop, and an arm that checks every
command's sequence number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import structs
from tyro.conf import arg

from trimvla.launch.console import Console
from trimvla.launch.load.limits import first_failure, judge, read_limits
from trimvla.launch.load.report import as_table, summarise
from trimvla.launch.load.results import LoadResult, LoadSize
from trimvla.launch.load.system import Load
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.results import recording_result
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.setup.observers import RECORDER, with_recorder
from trimvla.launch.system.setup.sections import Sections
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.runtime.bus.messages import MAX_ROWS
from trimvla.runtime.errors import ConfigError

START_S = 60.0
WARM_UP_S = 5.0
ROWS_S = 0.8  # of the stand-in's chunks: longer than it takes to make the next ones
LIMITS = {"low": [-0.05] * 6 + [0.0], "high": [0.05] * 6 + [1.0]}


@dataclass(frozen=True)
class Args(Options):
    """Put this machine under the load of a whole robot and report rate, jitter, losses, memory and
    latency."""

    seconds: float = 60.0
    cameras: int = 4
    width: int = 640
    height: int = 480
    camera_hz: float = 30.0
    control_hz: float = 50.0
    policy_ms: float = 150.0
    """What one inference takes, computing on one core all the time."""

    priority: int = 0
    """Of the control loop under SCHED_FIFO, such as 40: for a machine that does other things too;
    0: none."""

    record: Path | None = None
    """Also write everything that travels to this file: does recording slow the loop?"""

    assert_: Annotated[Path | None, arg(name="assert")] = None
    """A TOML file of limits, or two-cores for the shipped one: exit status 1 with the first limit
    that is not kept (docs/guides/assert-on-device.md)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what is out of range."""
        names = ("seconds", "cameras", "width", "height", "camera_hz", "control_hz", "policy_ms")
        numbers = tuple(getattr(self, name) for name in names)
        if not min(numbers) > 0:
            raise ConfigError(
                f"expected numbers above 0, got {numbers} for 'seconds' to 'policy_ms'"
            )

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--record", self.record),)

    @property
    def size(self) -> LoadSize:
        """How heavy the load is."""
        return LoadSize(**{name: getattr(self, name) for name in LoadSize.__struct_fields__})


def run(args: Args) -> LoadResult:
    """Start, wait, stop; the figures."""
    terminate_as_interrupt()
    limits = None if args.assert_ is None else read_limits(args.assert_)
    system = sections(args)
    if args.record is not None:
        system = with_recorder(system, args.record)
    with temporary_run_dir() as run_dir, Console(stderr=True).status("starting") as line:
        load = Load(system, run_dir)
        with load:
            load.until(lambda: load.report("arm").state == "moving", START_S, "the arm to move")
            line.update(f"under load for {args.seconds:g} s")
            load.wait(WARM_UP_S)
            usage = [load.usage()]
            for _ in range(2):
                load.wait(args.seconds / 2)
                usage.append(load.usage())
        last = load.reports.get(RECORDER)
        recording = None if args.record is None else recording_result(last, args.record)
        result = summarise(args.seconds, args.size, load.reports, usage, recording)
    if limits is not None:
        rows = judge(result, limits)
        failed = first_failure(rows)
        result = structs.replace(result, ok=failed is None, error=failed, assertions=rows)
    args.console().print(as_table(result))
    return result


def sections(args: Args) -> Sections:
    """The system."""
    size = {"width": args.width, "height": args.height, "hz": args.camera_hz}
    camera = {"process": "camera", "kind": "synthetic", **size}
    rows = min(MAX_ROWS, math.ceil(ROWS_S * args.control_hz))
    names = [f"eye{i}" for i in range(args.cameras)]
    cameras = {f"camera-{name}": {**camera, "name": name} for name in names}
    policy = {
        "process": "faulty-policy",
        "stand_in_ms": args.policy_ms,
        "stand_in_hz": args.control_hz,
        "stand_in_rows": rows,
        "camera": names[0],
        "more_cameras": names[1:],
        "valid_rows": rows,
    }
    control = {
        "hz": args.control_hz,
        "limits": LIMITS,
        "queue": {"max_age_s": 1.0},
        "realtime": {"freeze_gc": True, "priority": args.priority},
    }
    arm = {"process": "sim-arm", "watchdog_s": 0.3}
    return {"arm": arm, **cameras, "policy": policy, "control": control}
