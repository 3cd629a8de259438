"""`trimvla run`: the processes of a TOML file, started together, watched together, stopped
together."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.console import Console
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.client import TASK_PERIOD_S, SystemClient, new_task
from trimvla.launch.system.networking import read_network, use_network
from trimvla.launch.system.run_dirs import lock, temporary_run_dir
from trimvla.launch.system.run_result import RunResult, result_of
from trimvla.launch.system.service import shortfalls
from trimvla.launch.system.setup.observers import with_metrics, with_recorder
from trimvla.launch.system.setup.programs import check_system, programs
from trimvla.launch.system.setup.sections import Sections, read_system, reports_of
from trimvla.launch.system.setup.topic_check import Outside
from trimvla.launch.system.signals import stop_event
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.bus.network import Network, used
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.ports import check_port

CHECK_S = 0.05  # how soon the end of a process is noticed


@dataclass(frozen=True)
class Args(Options):
    """Start a system and keep it running until Ctrl-C. A process that ends is started again, or all
    stop."""

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
            raise ConfigError("expected an instruction, got an empty one for --task")
        if self.metrics is not None:
            check_port(self.metrics, "--metrics")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return Output("--record", self.record), Output("--run-dir", self.run_dir, folder=True)


def run(args: Args) -> RunResult:
    """Start, watch, stop; every process's last report."""
    sections = system(args)
    stop = stop_event(watch_parent=False)
    start = time.monotonic()
    with temporary_run_dir() if args.run_dir is None else nullcontext(args.run_dir) as run_dir:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock(run_dir).close()  # nothing of a system that runs is changed
        use_network(args.network, run_dir)
        with (
            SystemClient(run_dir, processes=reports_of(sections).values()) as client,
            Supervisor(programs(sections, run_dir, args.log_format), run_dir) as group,
            Console(stderr=True).status("starting") as line,
        ):
            if args.task is not None:
                client.begin(new_task(args.task))
            while not stop.is_set() and not over(args.seconds, start):
                group.check()
                client.turn(0.0)
                line.update(status_line(client.reports().values()))
                stop.wait(CHECK_S)
            reports = client.reports().values()
            stopped_early = stop.is_set() and group.is_starting
            lacks = [] if stopped_early else missing(group, reports, args)
            group.stop()
            client.receive(TASK_PERIOD_S)
            last = client.reports()
    return result_of(last, lacks, round(time.monotonic() - start, 1), args.record)


def over(seconds: float | None, start: float) -> bool:
    """Whether the requested time is over."""
    return seconds is not None and time.monotonic() - start >= seconds


def missing(group: Supervisor, reports: Iterable[Report], args: Args) -> list[str]:
    """What was requested and not given, up to now."""
    return shortfalls(reports, group.gone, group.unwell, task=args.task is not None)


def system(args: Args) -> Sections:
    """The file's processes, and those that watch them. Raises ConfigError where they do not fit."""
    sections = read_system(args.system, args.set)
    check_system(sections, args.task, outside(args))
    if args.metrics is not None:
        sections = with_metrics(sections, args.metrics)
    return sections if args.record is None else with_recorder(sections, args.record)


def outside(args: Args) -> Outside:
    """Who else may publish: other hosts, and whoever knows the run directory."""
    run_dir = args.run_dir
    if args.network is not None:
        network = read_network(args.network)
    else:
        network = Network() if run_dir is None or not run_dir.is_dir() else used(run_dir)
    return Outside(tuple(network.topics), run_dir_is_known=run_dir is not None)


def status_line(reports: Iterable[Report]) -> str:
    """State of every process, with the reason where there is one."""
    states = (f"{r.process} {r.state}{f': {r.reason}' if r.reason else ''}" for r in reports)
    return " | ".join(states) or "starting"
