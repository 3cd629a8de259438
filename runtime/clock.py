"""One monotonic clock, and a rate that does not drift. Knows time; not what is done with it.

Every time in messages is `monotonic_ns()`, which all processes of one host share; the wall clock is only for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trimvla.runtime.errors import ConfigError

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

monotonic_ns = time.monotonic_ns


def utc_ns() -> int:
    """Wall-clock time since 1970 [ns], for labels only: it jumps."""
    return time.time_ns()


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
    """Wakes once a period. The next deadline is the last one plus the period, so errors never add up.

    A tick that takes longer than its period makes the rate skip the deadlines that it missed and count them; there is
    no burst to catch up.
    """

    def __init__(
        self, hz: float, now: Callable[[], int] = monotonic_ns, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        """`sleep` [s] may return early (an event's `wait`): then the tick starts early and is not counted as late."""
        if not hz > 0:
            raise ConfigError(f"expected a rate above 0 Hz, got {hz!r} for 'hz'")
        self.hz = hz
        self.period_ns = round(NS_PER_S / hz)
        self._now, self._sleep = now, sleep
        self._start = self.deadline_ns = now()
        self._last = self._start
        self._ticks = self._late = self._skipped = self._worst_lag = 0

    def wait(self) -> int:
        """Sleep until the next deadline and return that deadline [ns], the tick's nominal time."""
        self.deadline_ns += self.period_ns
        behind = self._now() - self.deadline_ns
        if behind >= self.period_ns:
            missed = behind // self.period_ns
            self._skipped += missed
            self.deadline_ns += missed * self.period_ns
        remaining = self.deadline_ns - self._now()
        if remaining > 0:
            self._sleep(remaining / NS_PER_S)
        self._note(self._now())
        return self.deadline_ns

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
        return RateReport(self.hz, achieved, self._ticks, self._late, self._skipped, self._worst_lag / NS_PER_MS)
