"""Starts processes in order, notices when one ends or hangs, starts it again or stops all; leaves
nothing behind.

The robot is stopped first: the moment that something which matters is lost, `health` carries that
and the control loop holds; when all stop, control goes first, and its last command is a hold. Only
what has once been ready is started again, with growing pauses: what cannot even start is an error
at once. Knows commands, reports and logs; not what a process does.

Every child holds the reading end of a pipe on its standard input; when the parent goes away,
however it goes, the pipe closes and the child stops (`signals.stop_event`). A child that does not
stop is terminated, then killed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from trimvla.launch.system.child import Child, ManagedProcess, Program
from trimvla.launch.system.run_dirs import lock
from trimvla.runtime.bus.claim import sweep
from trimvla.runtime.bus.messages import Health, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import TrimvlaError

log = logging.getLogger(__name__)
HEALTH_PERIOD_S = 0.2
AWAY_S = 1.0  # between two looks: nobody counts as silent for the time in which nobody looked
TRIM_PERIOD_S = 1.0  # between two looks at how long the logs are


class ProcessEndedError(TrimvlaError):
    """A process that should be running has ended."""


class Supervisor:
    """A group of children with one life: `with Supervisor(...) as group:` starts, `check` watches,
    leaving stops.
    """

    def __init__(self, programs: Sequence[Program], run_dir: Path, *, restart: bool = True) -> None:
        """One log a process goes to `run_dir`, where the sockets are.

        Without `restart` nothing is started again.
        """
        self._programs = programs
        self._run_dir = run_dir
        self._restart = restart
        self.posts: list[ManagedProcess] = []
        self.gone: list[str] = []
        """What ended for good, and how, without ending the group."""
        self._order: int | None = None
        self._published_s = 0.0
        self._published_reason = ""
        self._trimmed_s = 0.0
        self._looked_ns = self._awake_ns = 0
        """When it last looked, and since when it has looked all the time."""
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
            self._reports = stack.enter_context(
                Subscriber(self._run_dir, [topic(report(name)) for name in names])
            )
            self._health = Publisher(self._run_dir, topic("health"))
            stack.pop_all()
        try:
            self._start_next()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Look after all; call it many times a second. Starts what is to be started next, or again.

        Raises ProcessEndedError, with a child's own last words, if one that matters has ended for
        good.
        """
        self._receive()
        for post in tuple(self.posts):
            if text := post.ended():
                self._lose(post, text)
            post.return_when_due()
        if all(post.ready for post in self.posts):
            self._start_next()
        self._publish_health(self.unwell)
        self._trim_logs()

    @property
    def unwell(self) -> str:
        """Why the robot must hold: what is lost, else what is not ready as yet; empty if it need
        not.
        """
        posts = [post for post in self.posts if post.program.matters]
        waiting = [
            f"process '{p.name}' is not started"
            for p in self._programs
            if p.matters and self._is_later(p)
        ]
        missing = [*(post.lost for post in posts), *(post.missing for post in posts), *waiting]
        return next(filter(None, missing), "")

    @property
    def is_starting(self) -> bool:
        """Whether nothing is lost, and not all are ready for the first time as yet."""
        return bool(self.unwell) and not any(post.lost for post in self.posts)

    def _is_later(self, program: Program) -> bool:
        return self._order is None or program.order > self._order

    def stop(self) -> None:
        """Ask to stop and wait, then insist: control first, so that the robot holds; then the
        others.
        """
        if self._lock is None:
            return
        for order in sorted({post.program.order for post in self.posts}, reverse=True):
            self._stop([post for post in self.posts if post.program.order == order])
        self._health.close()
        self._reports.close()
        sweep(self._run_dir)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _stop(self, posts: Sequence[ManagedProcess]) -> None:
        running = [(post.child, post.program.stop_s) for post in posts if post.child is not None]
        for child, _ in running:
            child.request_stop()
        asked = time.monotonic()
        for child, stop_s in sorted(running, key=lambda each: each[1]):
            if not child.wait(asked + stop_s):
                child.terminate()

    def _start_next(self) -> None:
        """Start those of the next order."""
        later = [program.order for program in self._programs if self._is_later(program)]
        if not later:
            return
        self._order = min(later)
        for program in self._programs:
            if program.order == self._order:
                self.posts.append(ManagedProcess(program, self._run_dir))
                self.posts[-1].start()

    def _receive(self) -> None:
        """Take in the reports.

        Who did not look for a while was stopped, or the host was suspended: all begin anew.
        """
        now_ns = monotonic_ns()
        if now_ns - self._looked_ns > to_ns(AWAY_S):
            self._awake_ns = now_ns
        self._looked_ns = now_ns
        self._reports.update()
        for post in self.posts:
            if post.program.report:
                newest = self._reports[report(post.program.report)]
                post.receive(
                    newest.message if isinstance(newest.message, Report) else None,
                    newest.silence_s,
                    self._awake_ns,
                )

    def _lose(self, post: ManagedProcess, text: str) -> None:
        """A child has ended: the robot first, then what is to be done about it."""
        again = self._restart and post.may_return()
        if post.program.matters:
            self._publish_health(text)
        if again:
            log.error("%s; started again in %.1f s", text, post.pause(text))
            return
        if post.program.matters:
            raise ProcessEndedError(text)
        log.error("%s; the others go on", text)
        self.gone.append(text)
        self.posts.remove(post)

    def _trim_logs(self) -> None:
        if time.monotonic() >= self._trimmed_s + TRIM_PERIOD_S:
            self._trimmed_s = time.monotonic()
            for post in self.posts:
                post.trim_log()

    def _publish_health(self, unwell: str) -> None:
        """Publish how the group is, at once if that has changed."""
        if (
            unwell != self._published_reason
            or time.monotonic() >= self._published_s + HEALTH_PERIOD_S
        ):
            self._health.send(Health(time_ns=monotonic_ns(), ok=not unwell, reason=unwell[:4096]))
            self._published_reason = unwell
            self._published_s = time.monotonic()
