"""Starts processes, notices when one ends, and leaves nothing behind. Knows commands and logs; not what a process does.

Every child holds the reading end of a pipe on its standard input; when the parent goes away, however it goes, the pipe
closes and the child stops (`stop_event`). A child that does not stop is terminated, then killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from trimvla.runtime.errors import TrimvlaError

log = logging.getLogger(__name__)
GRACE_S = 5.0  # from the closed pipe to SIGTERM, and from there to SIGKILL
LOG_TAIL_LINES = 5


class ProcessEndedError(TrimvlaError):
    """A process that should be running has ended."""


class Child:
    """One running process and its log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches the parent alone."""
        self.name = name
        self.log = log
        with log.open("wb") as sink:
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

    def last_words(self) -> str:
        """The error line of its log, or the log's last lines."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else " | ".join(lines[-LOG_TAIL_LINES:]) or "no output"


class Supervisor:
    """A group of children with one life: `with Supervisor(...) as group:` starts, `check` watches, leaving stops."""

    def __init__(self, commands: Mapping[str, Sequence[str]], log_dir: Path, dispensable: Collection[str] = ()) -> None:
        """`commands` is name -> argv, started in this order; one log a process goes to `log_dir`.

        The group lives on without those that are dispensable.
        """
        self._commands, self._dispensable = commands, set(dispensable)
        self._log_dir = log_dir
        self.children: list[Child] = []

    def __enter__(self) -> Supervisor:
        try:
            for name, command in self._commands.items():
                self.children.append(Child(name, command, self._log_dir / f"{name}.log"))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def check(self) -> None:
        """Raise ProcessEndedError if a child has ended, with its own last words; a dispensable one is only logged."""
        for child in self.children:
            if child.status() is None:
                continue
            text = f"process '{child.name}' ended with status {child.status()}: {child.last_words()}"
            if child.name not in self._dispensable:
                raise ProcessEndedError(text)
            log.error("%s; the others go on", text)
            self.children.remove(child)
            return

    def stop(self) -> None:
        """Ask all to stop, wait for all together, then insist."""
        for child in self.children:
            child.ask_to_stop()
        deadline = time.monotonic() + GRACE_S
        for child in self.children:
            if not child.wait(deadline):
                child.terminate()


def stop_event(watch_parent: bool) -> threading.Event:
    """An event that SIGINT, SIGTERM and, with `watch_parent`, the end of standard input set.

    For the main thread of a child. A second Ctrl-C interrupts as usual.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if watch_parent:
        threading.Thread(target=_set_at_end_of_input, args=(stop,), name="parent-watch", daemon=True).start()
    return stop


def terminate_as_interrupt() -> None:
    """Make SIGTERM raise KeyboardInterrupt, so that a parent stops its children and removes its files either way."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _set_at_end_of_input(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()
