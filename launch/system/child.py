"""One child process, its log, and the post that it fills: started, ready, lost, started again after
a pause.

Knows commands, reports and pauses; what follows from a loss is the supervisor's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimvla.launch.system import log_files
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.bus.run_dir import open_file
from trimvla.runtime.clock import NS_PER_S, monotonic_ns

log = logging.getLogger(__name__)
GRACE_S = 5.0  # from the closed pipe to SIGTERM, and from there to SIGKILL
LOG_TAIL_LINES = 5
LOG_MODE = 0o644
PAUSES_S = (0.2, 1.0, 2.0, 5.0, 10.0)  # before each start in a row; after the last one, all stop
WELL_S = 30.0  # a process that has run for so long may fail from the beginning again


@dataclass(frozen=True)
class Program:
    """What to run, and what it means if it is gone."""

    name: str
    command: Sequence[str]
    order: int = 0
    """Those of the lowest order start first, the next when those are ready; they stop the other way
    round.
    """
    report: str = ""
    """Under which name it reports; empty: it does not, and counts as ready."""
    matters: bool = True
    """Whether the robot must hold without it."""
    restart: bool = False
    silent_s: float = 20.0
    """Without a report for so long it counts as hung, and is killed."""
    start_s: float = 120.0
    """And likewise if it is not ready so long after its start."""
    stop_s: float = GRACE_S
    """So long it may take to end when asked to: a driver goes to its safe pose."""


class Child:
    """One running process and its log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the parent alone.

        The log goes on where it ended.
        """
        self.name = name
        self.log = log
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_file(log, flags, LOG_MODE), "ab") as sink:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def status(self) -> int | None:
        """None while it runs, else its exit status."""
        return self._process.poll()

    def request_stop(self) -> None:
        """Close the pipe that it watches."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def wait(self, deadline: float) -> bool:
        """Whether it ended before `deadline` on the monotonic clock [s]."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        return self.status() is not None

    def terminate(self) -> None:
        """SIGTERM, then SIGKILL."""
        for send in (self._process.terminate, self._process.kill):
            send()
            if self.wait(time.monotonic() + GRACE_S):
                return

    def kill(self) -> None:
        """SIGKILL, which a stopped process feels too; one that waits for a broken device only when
        that responds.
        """
        self._process.kill()

    def last_words(self) -> str:
        """The error line of its log, or the log's last lines."""
        lines = log_files.last_lines(self.log)
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else " | ".join(lines[-LOG_TAIL_LINES:]) or "no output"


class ManagedProcess:
    """One program and the process that fills it, now or after a pause."""

    def __init__(self, program: Program, log_dir: Path) -> None:
        self.program = program
        self._log = log_dir / f"{program.name}.log"
        log_files.remove(self._log)
        self.child: Child | None = None
        self.ready = not program.report
        self.lost = ""
        """Why there is none, until it is ready again; empty otherwise."""
        self.started_ns = 0
        self._ever_ready = False
        self._killed_for = ""
        self._failures = 0
        self._due = 0.0

    def trim_log(self) -> None:
        """Keep its log from growing without a limit."""
        log_files.trim(self._log)

    def start(self) -> None:
        """Start the process."""
        self.started_ns = monotonic_ns()
        self._killed_for = ""
        self.child = Child(self.program.name, self.program.command, self._log)

    def receive(self, newest: Report | None, silence_s: float, awake_ns: int = 0) -> None:
        """Take the newest report: it is ready, or hangs and is killed.

        `awake_ns`: since when somebody looks all the time; of the time before, nothing is known.
        """
        if self.child is None or self._killed_for:
            return
        now_ns = monotonic_ns()
        silence_s = min(silence_s, (now_ns - awake_ns) / NS_PER_S)
        own = newest if newest is not None and newest.time_ns >= self.started_ns else None
        doing = f": {own.reason}" if own is not None and own.reason else ""
        if own is not None and own.state != "starting":
            if not self.ready:
                self.ready = True
                self._ever_ready = True
                self.lost = ""
            if silence_s > self.program.silent_s:
                self._kill(f"has not reported for {silence_s:.1f} s{doing}")
        elif (
            not self.ready
            and now_ns - max(self.started_ns, awake_ns) > self.program.start_s * NS_PER_S
        ):
            self._kill(f"was not ready within {self.program.start_s:g} s{doing}")

    def _kill(self, why: str) -> None:
        """End a process that hangs. It is lost from now on, however long its end takes."""
        self._killed_for = f"process '{self.program.name}' {why}"
        self.lost = self._killed_for
        log.error("%s: killed", self._killed_for)
        if self.child is not None:
            self.child.kill()

    def ended(self) -> str:
        """The error if its process has ended; empty while it runs or is about to be
        started again.
        """
        if self.child is None or self.child.status() is None:
            return ""
        if self._killed_for:
            return f"{self._killed_for}, and was killed: {self.child.last_words()}"
        return (
            f"process '{self.program.name}' ended with status {self.child.status()}:"
            f" {self.child.last_words()}"
        )

    @property
    def missing(self) -> str:
        """Why its process cannot be counted on now; empty if it can."""
        return self.lost or ("" if self.ready else f"process '{self.program.name}' is starting")

    def may_return(self) -> bool:
        """Whether it is to be started again."""
        if monotonic_ns() - self.started_ns > WELL_S * NS_PER_S:
            self._failures = 0
        return self.program.restart and self._ever_ready and self._failures < len(PAUSES_S)

    def pause(self, why: str) -> float:
        """Leave the post empty for a while [s]."""
        pause_s = PAUSES_S[self._failures]
        self._failures = self._failures + 1
        self._due = time.monotonic() + pause_s
        self.child = None
        self.ready = not self.program.report
        self.lost = why
        return pause_s

    def return_when_due(self) -> None:
        """Start it again after its pause."""
        if self.lost and self.child is None and time.monotonic() >= self._due:
            self.start()
