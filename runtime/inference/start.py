"""Loads and warms up the policy's bundles within a time limit: a graph may loop for ever, a disk or
a device may hang.

The work is done in a thread, so that whoever waits for it can give up, report and be stopped. Knows
bundles and time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import BackendUnavailableError
from trimvla.runtime.foreign_thread import ForeignThread

WAIT_S = 0.1
Result = TypeVar("Result")
Step = Callable[[str], None]
"""Called by the work with what it is about to do, such as "loading 'tabletop'"."""


@dataclass(frozen=True)
class _Raised:
    """What the work raised."""

    error: BaseException


class StartInTime(Generic[Result]):
    """One piece of work in a thread of its own, and the time limit for it."""

    def __init__(self, work: Callable[[Step], Result], timeout_s: float, option: str) -> None:
        """Begin. `option`: which setting allows more time."""
        self.doing = "starting"
        """What the work is at."""
        self._outcome: queue.Queue[Result | _Raised] = queue.Queue()
        self._work = work
        self._timeout_s = timeout_s
        self._option = option
        self._deadline_ns = monotonic_ns() + to_ns(timeout_s)
        ForeignThread(self._run, "policy-start").start()

    def wait(self, stop: threading.Event, beat: Callable[[], None]) -> Result | None:
        """The result; None if `stop` came first. `beat` is called several times a second.

        Raises what the work raised, and BackendUnavailableError where it takes too long.
        """
        while not stop.is_set():
            beat()
            try:
                outcome = self._outcome.get(timeout=WAIT_S)
            except queue.Empty:
                self._check_time()
                continue
            if isinstance(outcome, _Raised):
                raise outcome.error
            return outcome
        return None

    def _run(self) -> None:
        try:
            self._outcome.put(self._work(self._note))
        except BaseException as error:  # handed over to the thread that waits
            self._outcome.put(_Raised(error))

    def _note(self, doing: str) -> None:
        self.doing = doing

    def _check_time(self) -> None:
        if monotonic_ns() >= self._deadline_ns:
            raise BackendUnavailableError(
                f"expected to be ready within {self._timeout_s:g} s, still {self.doing}; "
                f"'{self._option}' allows more, if it does not hang"
            )
