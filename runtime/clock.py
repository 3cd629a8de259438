"""One clock for every time in messages, its place on the wall clock, and a rate that does not
drift.

Every time in messages is `monotonic_ns()`, which all processes of one host share. It never jumps,
and it counts on while the host is suspended: an image from before a suspend is as old as it is. The
wall clock is for people and for other hosts; a wall-clock time is always derived from a time of
this clock (`wall_ns`), never read in its place. Knows time; not what is done with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trimvla.runtime.errors import ConfigError

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
TOGETHER_NS = 1_000_000  # clocks that are read within this time of each other were read together
TRIES = 100  # to read them so: a process that is stopped in between reads them again

# Linux: `time.monotonic_ns` stands still while the host is suspended. Elsewhere CLOCK_MONOTONIC
# counts on itself.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_ns() -> int:
    """This host's time since its start [ns], suspends included; the time of every message.

    Example:
        >>> from trimvla.runtime import monotonic_ns
        >>> start = monotonic_ns()
        >>> monotonic_ns() >= start
        True
    """
    return time.clock_gettime_ns(_CLOCK)


@dataclass(frozen=True)
class Instant:
    """One moment on every clock of this host [ns]."""

    ours: int
    """`monotonic_ns`."""
    awake: int
    """CLOCK_MONOTONIC, which stands still while the host is suspended; drivers stamp with it."""
    wall: int
    """Since 1970."""


def instant() -> Instant:
    """This moment, all clocks read together: within 1 ms, also where the process was stopped in
    between.
    """
    took, found = _read_all()
    for _ in range(TRIES):
        if took < TOGETHER_NS:
            break
        again = _read_all()
        took, found = min((took, found), again, key=lambda reading: reading[0])
    return found


def _read_all() -> tuple[int, Instant]:
    """The clocks, and how long it took to read them [ns]."""
    first = monotonic_ns()
    awake = time.monotonic_ns()
    wall = time.time_ns()
    last = monotonic_ns()
    return last - first, Instant((first + last) // 2, awake, wall)


def wall_offset_ns() -> int:
    """Wall clock minus `monotonic_ns`, now [ns]. It changes when the wall clock is set."""
    now = instant()
    return now.wall - now.ours


def wall_ns(time_ns: int) -> int:
    """A time of `monotonic_ns` on the wall clock, since 1970 [ns], as the clocks stand now; a
    label.
    """
    return time_ns + wall_offset_ns()


def seconds(nanoseconds: float) -> float:
    """[ns] -> [s]."""
    return nanoseconds / NS_PER_S


def to_ns(duration_s: float) -> int:
    """[s] -> [ns]."""
    return round(duration_s * NS_PER_S)


@dataclass(frozen=True)
class RateReport:
    """What a rate asked for and what it got."""

    asked_hz: float
    achieved_hz: float
    ticks: int
    late: int
    """Ticks that began after their deadline by more than a tenth of a period."""
    skipped: int
    """Deadlines that passed while an earlier tick was still at work."""
    worst_lag_ms: float


class Rate:
    """Wakes once a period.

    The next deadline is the last one plus the period, so errors never add up.

    A tick that takes longer than its period makes the rate skip the deadlines that it missed and
    count them; there is no burst to catch up.
    """

    def __init__(
        self,
        hz: float,
        now: Callable[[], int] = monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`sleep` [s] may return early (an event's `wait`): then the tick starts early and is not
        counted as late.
        """
        if not hz > 0:
            raise ConfigError(f"expected a rate above 0 Hz, got {hz!r} for 'hz'")
        self.hz = hz
        self.period_ns = round(NS_PER_S / hz)
        self._now = now
        self._sleep = sleep
        self._start = self.deadline_ns = now()
        self._last = self._start
        self._ticks = self._late = self._skipped = self._worst_lag = 0

    def wait(self) -> int:
        """Sleep until the next deadline and return that deadline [ns], the tick's nominal time.

        It is less than a period ago: what a process that was stopped in its sleep missed is skipped
        too.
        """
        self.deadline_ns += self.period_ns
        self._skip(self._now())
        remaining = self.deadline_ns - self._now()
        if remaining > 0:
            self._sleep(remaining / NS_PER_S)
        now = self._now()
        self._note(now)
        self._skip(now)
        return self.deadline_ns

    def _skip(self, now: int) -> None:
        """Pass over deadlines that are a period or more ago."""
        missed = max(0, (now - self.deadline_ns) // self.period_ns)
        self._skipped += missed
        self.deadline_ns += missed * self.period_ns

    def _note(self, now: int) -> None:
        lag = now - self.deadline_ns
        self._ticks += 1
        self._late += lag > self.period_ns // 10
        self._worst_lag = max(self._worst_lag, lag)
        self._last = now

    def report(self) -> RateReport:
        """Counts since the start."""
        elapsed = self._last - self._start
        achieved = self._ticks * NS_PER_S / elapsed if elapsed > 0 else 0.0
        return RateReport(
            self.hz, achieved, self._ticks, self._late, self._skipped, self._worst_lag / NS_PER_MS
        )
