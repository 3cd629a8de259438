"""`trimvla load`: four cameras, a slow policy, a fast control loop on this machine: is anything
late, lost or growing?

Real processes over real sockets, as `run` starts them: cameras with test pictures, a policy that
computes without sense for as long as a real one, the control loop and an arm that checks every
command's sequence number. Knows what to start and what to read; measures nothing itself but memory
and processor time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from trimvla.launch.console import Console
from trimvla.launch.options import Options, Result
from trimvla.launch.outputs import Output
from trimvla.launch.system.observers import RECORDER, outcome, with_recorder
from trimvla.launch.system.processes import Sections, programs, reports_of
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.launch.system.supervisor import Supervisor
from trimvla.launch.system.task_sender import TASK_PERIOD_S, as_task
from trimvla.runtime.bus.messages import MAX_ROWS, Report, Summary
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError, TrimvlaError

CHECK_S = 0.05  # how soon the end of a process is noticed
START_S = 60.0
WARM_UP_S = 5.0
ROWS_S = 0.8  # of the stand-in's chunks: longer than it takes to make the next ones
GROWTH_MIB = 2.0  # per process and from the middle to the end: what an allocator may do
NO_TIMES = Summary(0, 0.0, 0.0, 0.0)
LIMITS = {"low": [-0.05] * 6 + [0.0], "high": [0.05] * 6 + [1.0]}


class NotRunningError(TrimvlaError):
    """The system under load does not come to run."""


@dataclass(frozen=True)
class Args(Options):
    """Put this machine under the load of a whole robot and report rate, jitter, losses, memory and
    latency.
    """

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
    0: none.
    """

    record: Path | None = None
    """Also write everything that travels to this file: does recording slow the loop?"""

    def __post_init__(self) -> None:
        """Raise ConfigError for what is out of range."""
        numbers = (
            self.seconds,
            self.cameras,
            self.width,
            self.height,
            self.camera_hz,
            self.control_hz,
            self.policy_ms,
        )
        if not min(numbers) > 0:
            raise ConfigError(
                f"expected numbers above 0, got {numbers} for 'seconds' to 'policy_ms'"
            )

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--record", self.record),)


@dataclass(frozen=True)
class Usage:
    """What one process uses."""

    mib: float
    """Resident memory."""
    cpu_s: float
    """Processor time since its start."""


def run(args: Args) -> Result:
    """Start, wait, stop; the figures."""
    terminate_as_interrupt()
    system = sections(args)
    if args.record is not None:
        system = with_recorder(system, args.record)
    with temporary_run_dir() as run_dir, Console(stderr=True).status("starting") as line:
        load = Load(system, run_dir)
        with load:
            load.until(lambda: load.said("arm").state == "moving", START_S, "the arm to move")
            line.update(f"under load for {args.seconds:g} s")
            load.wait(WARM_UP_S)
            usage = [load.usage()]
            for _ in range(2):
                load.wait(args.seconds / 2)
                usage.append(load.usage())
        result = summarise(args, load.reports, usage)
    if args.record is not None:
        result["recording"] = outcome(load.reports.get(RECORDER), args.record)
    args.console().print(as_table(result))
    return result


def sections(args: Args) -> Sections:
    """The system."""
    picture = {
        "kind": "synthetic",
        "width": args.width,
        "height": args.height,
        "hz": args.camera_hz,
    }
    rows = min(MAX_ROWS, math.ceil(ROWS_S * args.control_hz))
    names = [f"eye{i}" for i in range(args.cameras)]
    cameras = {f"camera-{name}": {"process": "camera", "name": name, **picture} for name in names}
    eyes = {"camera": names[0], "more_cameras": names[1:], "valid_rows": rows}
    stand_in = {
        "stand_in_ms": args.policy_ms,
        "stand_in_hz": args.control_hz,
        "stand_in_rows": rows,
    }
    policy = {"process": "faulty-policy", **stand_in, **eyes}
    realtime = {"freeze_gc": True, "priority": args.priority}
    control = {
        "hz": args.control_hz,
        "limits": LIMITS,
        "queue": {"max_age_s": 1.0},
        "realtime": realtime,
    }
    return {
        "arm": {"process": "sim-arm", "watchdog_s": 0.3},
        **cameras,
        "policy": policy,
        "control": control,
    }


class Load:
    """The running system, its task, and what its processes say and use."""

    def __init__(self, system: Sections, run_dir: Path) -> None:
        self._system = system
        self._run_dir = run_dir
        self.reports: dict[str, Report] = {}
        """The newest of every process; after the end, the last."""

    def __enter__(self) -> Load:
        with ExitStack() as stack:
            self._group = stack.enter_context(
                Supervisor(programs(self._system, self._run_dir), self._run_dir, restart=False)
            )
            names = [topic(report(name)) for name in reports_of(self._system).values()]
            self._hears = stack.enter_context(Subscriber(self._run_dir, names))
            self._tasks = stack.enter_context(Publisher(self._run_dir, topic("task")))
            self._began_ns = monotonic_ns()
            self._said_ns = 0
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._group.stop()
        self._listen()
        self._stack.close()

    def said(self, process: str) -> Report:
        """A process's newest report; an empty one before the first."""
        return self.reports.get(process, Report(time_ns=0, process=process, state="starting"))

    def until(self, done: Any, timeout_s: float, what: str) -> None:  # noqa: ANN401 - a predicate
        """Keep all going until it is done. Raises NotRunningError if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                states = ", ".join(
                    f"{said.process} is {said.state} {said.reason}"
                    for said in self.reports.values()
                )
                raise NotRunningError(f"expected {what} within {timeout_s:g} s; {states}")
            self._turn()

    def wait(self, seconds: float) -> None:
        """Keep all going for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._turn()

    def usage(self) -> dict[str, Usage]:
        """Of every process."""
        return {child.name: read_usage(child.pid) for child in self._group.children}

    def _turn(self) -> None:
        self._group.check()
        if monotonic_ns() - self._said_ns > to_ns(TASK_PERIOD_S):
            self._tasks.send(as_task("bear the load", self._began_ns))
            self._said_ns = monotonic_ns()
        self._listen()
        time.sleep(CHECK_S)

    def _listen(self) -> None:
        self._hears.update()
        for name in reports_of(self._system).values():
            message = self._hears[report(name)].message
            if isinstance(message, Report):
                self.reports[name] = message


def read_usage(pid: int) -> Usage:
    """From /proc."""
    status = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Usage(
        int(status["VmRSS"].split()[0]) / 1024,
        (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
    )


def summarise(args: Args, reports: Mapping[str, Report], usage: list[dict[str, Usage]]) -> Result:
    """Everything as one JSON-able object."""
    control = reports["control"]
    arm = reports["arm"]
    policy = reports["policy"]
    memory = {name: [round(each[name].mib, 1) for each in usage] for name in usage[0]}
    # A recorder fills chunks and keeps an index of them: it grows by what it is for.
    growth = max(values[-1] - values[1] for name, values in memory.items() if name != RECORDER)
    asked = control.values["hz_asked"]
    achieved = control.values["hz_achieved"]
    lost = {name: arm.counters.get(name, 0) for name in ("obeyed", "lost", "repeated", "stale")}
    sent = sum(control.counters.get(name, 0) for name in ("actions", "holds"))
    cores = {
        name: round((usage[2][name].cpu_s - usage[0][name].cpu_s) / args.seconds, 3)
        for name in usage[0]
    }
    return {
        "ok": achieved >= 0.99 * asked
        and lost["lost"] == lost["repeated"] == 0
        and growth <= GROWTH_MIB,
        "seconds": args.seconds,
        "load": {
            name: getattr(args, name)
            for name in ("cameras", "width", "height", "camera_hz", "policy_ms", "priority")
        },
        "control_hz": {"asked": asked, "achieved": round(achieved, 3)},
        "ticks": {name: control.counters.get(name, 0) for name in ("ticks", "late", "skipped")},
        "lag_ms": percentiles(control, "lag"),
        "tick_ms": percentiles(control, "tick"),
        "period_ms": percentiles(arm, "command_period"),
        "photon_to_action_ms": percentiles(control, "photon_to_action"),
        "commands": {"sent": sent, "holds": control.counters.get("holds", 0), **lost},
        "frames": {
            "published": sum(said.counters.get("frames_published", 0) for said in reports.values()),
            "used": policy.counters.get("frames_used", 0),
            "stale": policy.counters.get("frames_stale", 0),
        },
        "inference_ms": percentiles(policy, "inference.total"),
        "memory_mib": memory,
        "growth_mib": round(growth, 1),
        "cores": {**cores, "all": round(sum(cores.values()), 3)},
    }


def percentiles(said: Report, name: str) -> dict[str, float]:
    """p50, p99 and max [ms] of the last 10,000."""
    summary = said.latencies.get(name, NO_TIMES)
    return {key: round(getattr(summary, key), 3) for key in ("p50", "p99", "max")}


def as_table(result: Result) -> Table:
    """The card."""

    def times(name: str) -> str:
        return "p50 {p50:.2f}, p99 {p99:.2f}, max {max:.2f} ms".format(**result[name])

    table = Table(
        title=f"trimvla load, {result['seconds']:g} s", show_header=False, title_justify="left"
    )
    rate = result["control_hz"]
    ticks = result["ticks"]
    sent = result["commands"]
    table.add_row("control rate", f"{rate['achieved']:.3f} Hz of {rate['asked']:g} Hz")
    table.add_row(
        "ticks",
        f"{ticks['ticks']}, {ticks['late']} late by a tenth of a period, {ticks['skipped']}"
        " skipped",
    )
    table.add_row("lag of a tick", times("lag_ms"))
    table.add_row("from command to command", times("period_ms"))
    table.add_row("camera to command", times("photon_to_action_ms"))
    words = (
        f"{sent['sent']} sent, {sent['holds']} holds; the arm: {sent['obeyed']} obeyed,"
        f" {sent['lost']} lost"
    )
    table.add_row("commands", f"{words}, {sent['repeated']} repeated, {sent['stale']} stale")
    table.add_row(
        "frames", "{published} published, {used} used, {stale} stale".format(**result["frames"])
    )
    table.add_row("inference", times("inference_ms"))
    for name, values in result["memory_mib"].items():
        cores = result["cores"][name]
        table.add_row(
            name,
            f"{values[0]:.1f}, {values[1]:.1f}, {values[2]:.1f} MiB: begin, middle, end;"
            f" {cores:.2f} cores",
        )
    if "recording" in result:
        table.add_row("recording", str(result["recording"]))
    return table
