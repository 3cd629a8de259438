"""Starts processes in order, notices when one ends or hangs, starts it again or stops all; leaves nothing behind.

The robot is stopped first: the moment that something which matters is lost, `health` says so and the control loop
holds; when all stop, control goes first, and its last word is a hold. Only what has once been ready is started again,
with growing pauses: what cannot even start is an error at once. Knows commands, reports and logs; not what a process
does.

Every child holds the reading end of a pipe on its standard input; when the parent goes away, however it goes, the pipe
closes and the child stops (`stop_event`). A child that does not stop is terminated, then killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from trimvla.launch.children import GRACE_S, Child, Post, Program
from trimvla.runtime.bus import Publisher, Subscriber
from trimvla.runtime.claim import sweep
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import ConfigError, TrimvlaError
from trimvla.runtime.messages import Health, Report
from trimvla.runtime.run_dir import check_run_dir, open_file
from trimvla.runtime.topics import report, topic

log = logging.getLogger(__name__)
HEALTH_PERIOD_S = 0.2
START_S = 120.0  # for what starts next to be started although something before it is not ready
LOCK = "lock"


class ProcessEndedError(TrimvlaError):
    """A process that should be running has ended."""


class Supervisor:
    """A group of children with one life: `with Supervisor(...) as group:` starts, `check` watches, leaving stops."""

    def __init__(self, programs: Sequence[Program], run_dir: Path, *, restart: bool = True) -> None:
        """One log a process goes to `run_dir`, where the sockets are. Without `restart` nothing is started again."""
        self._programs, self._run_dir, self._restart = programs, run_dir, restart
        self.posts: list[Post] = []
        self._order: int | None = None
        self._ordered_s = 0.0
        self._said_s, self._said = 0.0, ""
        self._lock: BinaryIO | None = None

    @property
    def children(self) -> list[Child]:
        """Those that run, or ran last."""
        return [post.child for post in self.posts if post.child is not None]

    def __enter__(self) -> Supervisor:
        self._lock = lock(self._run_dir)
        names = {program.report for program in self._programs if program.report}
        with contextlib.ExitStack() as stack:
            stack.callback(self._unlock)
            self._hears = stack.enter_context(Subscriber(self._run_dir, [topic(report(name)) for name in names]))
            self._health = Publisher(self._run_dir, topic("health"))
            stack.pop_all()
        try:
            self._start_next()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def check(self) -> None:
        """Look after all; call it many times a second. Starts what is to be started next, or again.

        Raises ProcessEndedError, with a child's own last words, if one that matters has ended for good.
        """
        self._listen()
        for post in tuple(self.posts):
            if text := post.ended():
                self._lose(post, text)
            post.return_when_due()
        if all(post.ready for post in self.posts) or time.monotonic() > self._ordered_s + START_S:
            self._start_next()
        self._say(self.unwell)

    @property
    def unwell(self) -> str:
        """Why the robot must hold; empty if it need not."""
        return next((post.lost for post in self.posts if post.lost and post.program.matters), "")

    def stop(self) -> None:
        """Ask to stop and wait, then insist: control first, so that the robot holds; then the others."""
        if self._lock is None:
            return
        for order in sorted({post.program.order for post in self.posts}, reverse=True):
            self._stop([post.child for post in self.posts if post.program.order == order and post.child is not None])
        self._health.close()
        self._hears.close()
        sweep(self._run_dir)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _stop(self, children: Sequence[Child]) -> None:
        for child in children:
            child.ask_to_stop()
        deadline = time.monotonic() + GRACE_S
        for child in children:
            if not child.wait(deadline):
                child.terminate()

    def _start_next(self) -> None:
        """Start those of the next order."""
        later = [p.order for p in self._programs if self._order is None or p.order > self._order]
        if not later:
            return
        self._order, self._ordered_s = min(later), time.monotonic()
        for program in self._programs:
            if program.order == self._order:
                self.posts.append(Post(program, self._run_dir))
                self.posts[-1].start()

    def _listen(self) -> None:
        self._hears.update()
        for post in self.posts:
            if post.program.report:
                heard = self._hears[report(post.program.report)]
                post.hear(heard.message if isinstance(heard.message, Report) else None, heard.silence_s)

    def _lose(self, post: Post, text: str) -> None:
        """A child has ended: the robot first, then what is to be done about it."""
        again = self._restart and post.may_return()
        if post.program.matters:
            self._say(text)
        if again:
            log.error("%s; started again in %.1f s", text, post.pause(text))
            return
        if post.program.matters:
            raise ProcessEndedError(text)
        log.error("%s; the others go on", text)
        self.posts.remove(post)

    def _say(self, unwell: str) -> None:
        """Publish how the group is, at once if that has changed."""
        if unwell != self._said or time.monotonic() >= self._said_s + HEALTH_PERIOD_S:
            self._health.send(Health(time_ns=monotonic_ns(), ok=not unwell, reason=unwell[:4096]))
            self._said, self._said_s = unwell, time.monotonic()


def lock(run_dir: Path) -> BinaryIO:
    """Keep the run directory for one system while the file is open.

    Raises ConfigError if another has it, or if others than this user could write there.
    """
    check_run_dir(run_dir)
    file = os.fdopen(open_file(run_dir / LOCK, os.O_RDWR | os.O_CREAT), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"expected a run directory of its own for every system; another one runs in {run_dir}"
        ) from None
    return file


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
