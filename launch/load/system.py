"""The system under load: what is started, its task, and what its processes use.

Knows what to start and what to read; measures nothing itself but memory and processor time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from trimvla.launch.system.client import SystemClient, new_task
from trimvla.launch.system.setup.programs import programs
from trimvla.launch.system.setup.sections import Sections, reports_of
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bus.messages import Report

INSTRUCTION = "bear the load"


@dataclass(frozen=True)
class Usage:
    """What one process uses."""

    mib: float
    """Resident memory."""
    cpu_s: float
    """Processor time since its start."""


class Load:
    """The running system with its task; `reports` are the newest of every process, or the last."""

    def __init__(self, system: Sections, run_dir: Path) -> None:
        self._system = system
        self._run_dir = run_dir
        self.reports: dict[str, Report] = {}

    def __enter__(self) -> Load:
        parts = programs(self._system, self._run_dir)
        processes = reports_of(self._system).values()
        with ExitStack() as stack:
            group = stack.enter_context(Supervisor(parts, self._run_dir, restart=False))
            client = SystemClient(self._run_dir, processes=processes, check=group.check)
            self._client = stack.enter_context(client)
            self._group = group
            client.begin(new_task(INSTRUCTION))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._group.stop()
        self._client.receive()
        self.reports = self._client.reports()
        self._stack.close()

    def report(self, process: str) -> Report:
        """A process's newest report; an empty one, `starting`, before the first."""
        return self._client.report(process)

    def until(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Keep all going until it is done. Raises NoAnswerError if that takes too long."""
        self._client.until(done, timeout_s, what)

    def wait(self, seconds: float) -> None:
        """Keep all going for a while."""
        self._client.wait(seconds)

    def usage(self) -> dict[str, Usage]:
        """Of every process."""
        return {child.name: read_usage(child.pid) for child in self._group.children}


def read_usage(pid: int) -> Usage:
    """From /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(times[11]) + int(times[12])
    return Usage(int(status["VmRSS"].split()[0]) / 1024, ticks / os.sysconf("SC_CLK_TCK"))
