"""Logs that strangers cannot fill: at most so many lines of one kind in a period, then "and 4,312
more".

`LimitedLog` wraps a logger where the caller knows what one kind is (an address, a reason);
`EveryCallLimit` is the backstop of a whole process, where a kind is a line of code. Knows counts
and times; not what is logged, nor where to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.printable import printable

MOST = 5
PERIOD_S = 60.0
MOST_A_CALL = 60  # lines a period from one line of code, whatever kinds it names
MAX_KINDS = 256  # strangers may invent kinds: those beyond count as one
MAX_CHARACTERS = 1000  # of one line


@dataclass
class _Window:
    """What came of one kind since `began_ns`."""

    began_ns: int
    passed: int = 0
    withheld: int = 0


class Limit:
    """Decides which events of a kind pass: `most` in every `period_s` seconds, those withheld are
    counted.
    """

    def __init__(
        self, most: int = MOST, period_s: float = PERIOD_S, max_kinds: int = MAX_KINDS
    ) -> None:
        self._most = most
        self._period_ns = to_ns(period_s)
        self._max_kinds = max_kinds
        self._windows: dict[Hashable, _Window] = {}

    def admit(self, kind: Hashable, now_ns: int) -> int | None:
        """How many of this kind were withheld before one that passes; None for one that does not
        pass.
        """
        window, before = self._window(kind, now_ns)
        if window.passed < self._most:
            window.passed += 1
            return before
        window.withheld += 1
        return None

    def overdue(self, now_ns: int, all_of_them: bool = False) -> dict[Hashable, int]:
        """Kinds whose period is over (or simply all) and how many of each were withheld; they are
        forgotten.
        """
        over = [
            kind
            for kind, window in self._windows.items()
            if all_of_them or now_ns - window.began_ns >= self._period_ns
        ]
        counts = {kind: self._windows.pop(kind).withheld for kind in over}
        return {kind: count for kind, count in counts.items() if count}

    def _window(self, kind: Hashable, now_ns: int) -> tuple[_Window, int]:
        """The kind's window and what an earlier one, that is over, withheld."""
        window = self._windows.get(kind)
        if window is not None and now_ns - window.began_ns < self._period_ns:
            return window, 0
        if window is None and len(self._windows) >= self._max_kinds:
            self._windows = {
                k: w for k, w in self._windows.items() if now_ns - w.began_ns < self._period_ns
            }
            if len(self._windows) >= self._max_kinds and kind is not Limit:
                # the kind of all further kinds; no caller's kind is this class
                return self._window(Limit, now_ns)
        fresh = _Window(now_ns)
        self._windows[kind] = fresh
        return fresh, window.withheld if window is not None else 0


class LimitedLog:
    """A logger for what others can cause. For several threads.

    Each line names its kind first: `log.warning(address, "refused %s: %s", address, reason)`.
    Characters that are not printable are escaped and long lines are cut, so that nobody can forge a
    line or fill a disk with one.
    """

    def __init__(
        self,
        log: logging.Logger,
        most: int = MOST,
        period_s: float = PERIOD_S,
        now: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._log = log
        self._now = now
        self._period_s = period_s
        self._limit = Limit(most, period_s)
        self._lock = threading.Lock()

    def info(self, kind: Hashable, text: str, *arguments: object) -> None:
        """See `logging.Logger.info`."""
        self._write(logging.INFO, kind, text, arguments)

    def warning(self, kind: Hashable, text: str, *arguments: object) -> None:
        """See `logging.Logger.warning`."""
        self._write(logging.WARNING, kind, text, arguments)

    def error(self, kind: Hashable, text: str, *arguments: object) -> None:
        """See `logging.Logger.error`."""
        self._write(logging.ERROR, kind, text, arguments)

    def exception(self, kind: Hashable, text: str, *arguments: object) -> None:
        """See `logging.Logger.exception`: with the traceback of the exception that is being
        handled.
        """
        self._write(logging.ERROR, kind, text, arguments, traceback=True)

    def flush(self) -> None:
        """Log how many lines are withheld as yet, of every kind; to be called before the end."""
        with self._lock:
            counts = self._limit.overdue(self._now(), all_of_them=True)
        self._write_counts(counts)

    def _write(
        self,
        level: int,
        kind: Hashable,
        text: str,
        arguments: tuple[object, ...],
        traceback: bool = False,
    ) -> None:
        now_ns = self._now()
        with self._lock:
            before = self._limit.admit(kind, now_ns)
            counts = self._limit.overdue(now_ns) if before is not None else {}
        if before is None:
            return
        self._write_counts(counts)
        line = printable(text % arguments if arguments else text, MAX_CHARACTERS) + more(
            before, self._period_s
        )
        self._log.log(level, "%s", line, exc_info=traceback, stacklevel=3)

    def _write_counts(self, counts: dict[Hashable, int]) -> None:
        for kind, count in counts.items():
            name = "other kinds" if kind is Limit else printable(str(kind), 100)
            self._log.warning("%s%s", name, more(count, self._period_s))


class EveryCallLimit(logging.Filter):
    """Limits what one line of code can log, for a handler: the backstop where nobody thought of a
    flood.
    """

    def __init__(
        self,
        most: int = MOST_A_CALL,
        period_s: float = PERIOD_S,
        now: Callable[[], int] = monotonic_ns,
    ) -> None:
        super().__init__()
        self._limit = Limit(most, period_s)
        self._period_s = period_s
        self._now = now

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; the first one after a flood also has its count."""
        # under the handler's lock
        before = self._limit.admit((record.pathname, record.lineno), self._now())
        if before:
            record.msg = f"{record.getMessage()}{more(before, self._period_s)}"
            record.args = ()
        return before is not None


def more(count: int, period_s: float = PERIOD_S) -> str:
    """What follows a line after which so many of its kind were withheld; empty for none."""
    return f" (and {count:,} more of this kind in {period_s:g} s)" if count else ""
