"""Counts and durations of one process, and the report that carries them.

Knows numbers; not what they measure.

Percentiles are of a bounded window and histograms are counts, so that a long run costs no more than
a short one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus import traffic
from trimvla.runtime.bus.inputs import Input
from trimvla.runtime.bus.messages import Report, Summary
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns, to_ns

WINDOW = 10_000  # durations kept by name
REPORT_PERIOD_S = 0.5
# upper bounds; one more bucket lies beyond
BUCKETS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def summarise(milliseconds: Iterable[float] | NDArray[np.float64]) -> Summary:
    """Nearest-rank percentiles of durations [ms]; all zero where there are none."""
    values = (
        milliseconds
        if isinstance(milliseconds, np.ndarray)
        else np.fromiter(milliseconds, np.float64)
    )
    if not values.size:
        return Summary(0, 0.0, 0.0, 0.0)
    ordered = np.sort(values)
    return Summary(len(ordered), _rank(ordered, 0.50), _rank(ordered, 0.99), float(ordered[-1]))


def _rank(ordered: NDArray[np.float64], quantile: float) -> float:
    """The smallest value that at least `quantile` of all values do not exceed."""
    return float(ordered[math.ceil(quantile * len(ordered)) - 1])


class Distribution:
    """Durations under one name: a window for percentiles, a histogram since the start."""

    def __init__(self) -> None:
        # sorted within a control tick: not a list of floats
        self._window = np.zeros(WINDOW)
        self._count = 0
        self._sum = 0.0
        self._buckets = [0] * (len(BUCKETS_MS) + 1)

    def add(self, milliseconds: float) -> None:
        """Note one."""
        self._window[self._count % WINDOW] = milliseconds
        self._count += 1
        self._sum += milliseconds
        self._buckets[bisect_left(BUCKETS_MS, milliseconds)] += 1

    def summary(self) -> Summary:
        """Both, so far."""
        window = summarise(self._window[: self._count])  # which ends where the array does
        return msgspec.structs.replace(window, sum=self._sum, buckets=tuple(self._buckets))


class Telemetry:
    """What one process counts and times."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.counters: Counter[str] = Counter()
        self.values: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.state = "starting"
        self.reason = ""
        self._durations: dict[str, Distribution] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] += by

    def time(self, name: str, milliseconds: float) -> None:
        """Note a duration [ms]."""
        self._durations.setdefault(name, Distribution()).add(milliseconds)

    def time_ns(self, name: str, nanoseconds: int) -> None:
        """Note a duration [ns]."""
        self.time(name, nanoseconds / NS_PER_MS)

    def time_all(self, prefix: str, milliseconds: Mapping[str, float]) -> None:
        """Note durations [ms] by part, as `prefix.part`."""
        for part, duration in milliseconds.items():
            self.time(f"{prefix}.{part}", duration)

    def note_traffic(self, inputs: Iterable[Input]) -> None:
        """Take over what is known of the topics that the process subscribes to."""
        found = tuple(inputs)
        for name, count in traffic.counters(found):
            self.counters[name] = count
        self.values.update(traffic.values(found))
        self.problems.update(traffic.problems(found))

    def report(self) -> Report:
        """Everything so far."""
        return Report(
            time_ns=monotonic_ns(),
            process=self.process,
            state=self.state,
            reason=self.reason,
            counters=dict(self.counters),
            values=dict(self.values),
            problems=dict(self.problems),
            latencies={name: durations.summary() for name, durations in self._durations.items()},
        )


class Reporter:
    """Publishes a process's report, which is also its sign of life, now and then."""

    def __init__(self, run_dir: Path, telemetry: Telemetry, inputs: Iterable[Input] = ()) -> None:
        """`inputs` are those that the process subscribes to: what was wrong with them is reported
        too.
        """
        self.telemetry = telemetry
        self.inputs = inputs
        self._publisher = Publisher(run_dir, topic(report(telemetry.process)))
        self._next_ns = 0
        self._published_state = ""

    def beat(self) -> None:
        """Publish if it is time, or if the state is another one."""
        if monotonic_ns() >= self._next_ns or self.telemetry.state != self._published_state:
            self._publish()

    def close(self) -> None:
        """Publish once more, and end."""
        self._publish()
        self._publisher.close()

    def _publish(self) -> None:
        self._next_ns = monotonic_ns() + to_ns(REPORT_PERIOD_S)
        self._published_state = self.telemetry.state
        self.telemetry.note_traffic(self.inputs)
        self._publisher.send(self.telemetry.report())
