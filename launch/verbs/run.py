"""`trimvla run`: the processes of a TOML file, started together, watched together, stopped
together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.console import Console
from trimvla.launch.options import Options, Result
from trimvla.launch.outputs import Output
from trimvla.launch.system.networking import use_network
from trimvla.launch.system.observers import RECORDER, outcome, with_metrics, with_recorder
from trimvla.launch.system.processes import (
    Sections,
    check_system,
    programs,
    read_system,
    reports_of,
)
from trimvla.launch.system.run_dirs import lock, temporary_run_dir
from trimvla.launch.system.service import shortfalls
from trimvla.launch.system.signals import stop_event
from trimvla.launch.system.supervisor import Supervisor
from trimvla.launch.system.task_sender import TASK_PERIOD_S, TaskSender
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.ports import check_port

CHECK_S = 0.05  # how soon the end of a process is noticed


@dataclass(frozen=True)
class Args(Options):
    """Start a system and keep it running until Ctrl-C.

    A process that ends is started again, or all stop.
    """

    system: Positional[str]
    """A TOML file with one section a process, or a shipped one: robot, demo."""

    task: str | None = None
    """What the robot is to do; without it the system waits for a task on its socket."""

    run_dir: Path | None = None
    """Where the sockets and logs are; a temporary directory by default."""

    network: Path | None = None
    """A TOML file with the topics that cross hosts and their keys."""

    seconds: float | None = None
    """Stop after this time."""

    record: Path | None = None
    """Also write everything that travels to this file, usually *.mcap."""

    metrics: int | None = None
    """Also serve a Prometheus page on this port of this host; 9464 is usual."""

    set: tuple[str, ...] = ()
    """Changes to the file, such as `policy.threads=2`; `--policy.threads 2` does the same."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if self.task is not None and not self.task.strip():
            raise ConfigError("expected a sentence, got an empty one for --task")
        if self.metrics is not None:
            check_port(self.metrics, "--metrics")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return Output("--record", self.record), Output("--run-dir", self.run_dir, folder=True)


def run(args: Args) -> Result:
    """Start, watch, stop; every process's last report."""
    sections = system(args)
    owners = list(reports_of(sections).values())
    stop = stop_event(watch_parent=False)
    start = time.monotonic()
    with temporary_run_dir() if args.run_dir is None else nullcontext(args.run_dir) as run_dir:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock(run_dir).close()  # nothing of a system that runs is changed
        use_network(args.network, run_dir)
        with (
            closing(TaskSender(args.task, run_dir)) as tasks,
            Supervisor(programs(sections, run_dir, args.log_format), run_dir) as group,
            Subscriber(run_dir, [topic(report(name)) for name in owners]) as hears,
            Console(stderr=True).status("starting") as line,
        ):
            while not stop.is_set() and (
                args.seconds is None or time.monotonic() - start < args.seconds
            ):
                group.check()
                tasks.repeat()
                hears.update()
                line.update(status_line(newest(hears, owners)))
                stop.wait(CHECK_S)
            lacks = (
                []
                if stop.is_set() and group.is_starting
                else missing(group, newest(hears, owners), args)
            )
            group.stop()
            hears.update(TASK_PERIOD_S)
            reports = newest(hears, owners)
    processes = {
        r.process: {"state": r.state, "counters": r.counters, "values": r.values} for r in reports
    }
    result: Result = {
        "ok": not lacks,
        "seconds": round(time.monotonic() - start, 1),
        "processes": processes,
    }
    if times := next(
        (r.latencies["photon_to_action"] for r in reports if "photon_to_action" in r.latencies),
        None,
    ):
        result["photon_to_action_ms"] = {"p50": times.p50, "p99": times.p99, "max": times.max}
    if args.record is not None:
        result["recording"] = outcome(
            next((r for r in reports if r.process == RECORDER), None), args.record
        )
        result["ok"] = result["ok"] and result["recording"]["ok"]
        lacks += [] if result["recording"]["ok"] else [result["recording"]["error"]]
    return result | ({"error": "; ".join(dict.fromkeys(lacks))} if lacks else {})


def missing(group: Supervisor, reports: Sequence[Report], args: Args) -> list[str]:
    """What of that which was asked for was not given, up to now."""
    return shortfalls(reports, group.gone, group.unwell, task=args.task is not None)


def system(args: Args) -> Sections:
    """The file's processes, and those that watch them.

    Raises ConfigError where they do not go together.
    """
    sections = read_system(args.system, args.set)
    check_system(sections)
    if args.metrics is not None:
        sections = with_metrics(sections, args.metrics)
    return sections if args.record is None else with_recorder(sections, args.record)


def newest(hears: Subscriber, names: Iterable[str]) -> list[Report]:
    """The newest report of every process that has spoken."""
    messages = [hears[report(name)].message for name in names]
    return [message for message in messages if isinstance(message, Report)]


def status_line(reports: Iterable[Report]) -> str:
    """State of every process, with the reason where there is one."""
    return (
        " | ".join(f"{r.process} {r.state}{f': {r.reason}' if r.reason else ''}" for r in reports)
        or "starting"
    )
