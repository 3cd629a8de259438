"""One child process, its log, and the post that it fills: started, ready, lost, started again after a pause.

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

from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.messages import Report
from trimvla.runtime.run_dir import open_file

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
    """Those of the lowest order start first, the next when those are ready; they stop the other way round."""
    report: str = ""
    """Under which name it reports; empty: it does not, and counts as ready."""
    matters: bool = True
    """Whether the robot must hold without it."""
    restart: bool = False
    silent_s: float = 20.0
    """Without a report for so long it counts as hung, and is killed."""


class Child:
    """One running process and its log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the parent alone. The log goes on where it ended."""
        self.name = name
        self.log = log
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_file(log, flags, LOG_MODE), "ab") as sink:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def status(self) -> int | None:
        """None while it runs, else its exit status."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
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
        """SIGKILL, which a stopped process feels too."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """The error line of its log, or the log's last lines."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else " | ".join(lines[-LOG_TAIL_LINES:]) or "no output"


class Post:
    """One program and the process that fills it, now or after a pause."""

    def __init__(self, program: Program, log_dir: Path) -> None:
        self.program = program
        self._log = log_dir / f"{program.name}.log"
        self._log.unlink(missing_ok=True)
        self.child: Child | None = None
        self.ready = not program.report
        self.lost = ""
        """Why there is none, until it is ready again; empty otherwise."""
        self.started_ns = 0
        self._ever_ready = False
        self._failures, self._due = 0, 0.0

    def start(self) -> None:
        """Start the process."""
        self.started_ns = monotonic_ns()
        self.child = Child(self.program.name, self.program.command, self._log)

    def hear(self, said: Report | None, silence_s: float) -> None:
        """Take the newest report: it is ready, or hangs and is killed."""
        if self.child is None or said is None or said.time_ns < self.started_ns or said.state == "starting":
            return
        if not self.ready:
            self.ready, self._ever_ready, self.lost = True, True, ""
        if silence_s > self.program.silent_s:
            log.error("process '%s' has not reported for %.1f s: killed", self.program.name, silence_s)
            self.child.kill()

    def ended(self) -> str:
        """What is to be said if its process has ended; empty while it runs or is about to be started again."""
        if self.child is None or self.child.status() is None:
            return ""
        return f"process '{self.program.name}' ended with status {self.child.status()}: {self.child.last_words()}"

    def may_return(self) -> bool:
        """Whether it is to be started again."""
        if monotonic_ns() - self.started_ns > WELL_S * NS_PER_S:
            self._failures = 0
        return self.program.restart and self._ever_ready and self._failures < len(PAUSES_S)

    def pause(self, why: str) -> float:
        """Leave the post empty for a while [s]."""
        pause_s = PAUSES_S[self._failures]
        self._failures, self._due = self._failures + 1, time.monotonic() + pause_s
        self.child, self.ready, self.lost = None, not self.program.report, why
        return pause_s

    def return_when_due(self) -> None:
        """Start it again after its pause."""
        if self.lost and self.child is None and time.monotonic() >= self._due:
            self.start()
