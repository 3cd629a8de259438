"""Figures of a running system, in the results of the verbs that start one. Knows types alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.runtime.bus.messages import Report, Summary

NO_TIMES = Summary(0, 0.0, 0.0, 0.0)


class Percentiles(msgspec.Struct, frozen=True):
    """Durations [ms] of the last 10,000 events of one kind."""

    p50: float
    """Half of them took no longer [ms]."""
    p99: float
    """99 of 100 took no longer [ms]."""
    max: float
    """The longest [ms]."""


class ControlRate(msgspec.Struct, frozen=True):
    """Ticks per second of the control loop."""

    asked: float
    """As configured [Hz]."""
    achieved: float
    """As measured [Hz]."""


class FrameCounts(msgspec.Struct, frozen=True):
    """Images of all cameras."""

    published: int
    """By the cameras."""
    used: int
    """By the policy."""
    stale: int
    """Refused by the policy, because they were too old."""


class RecordingResult(VerbResult, frozen=True, kw_only=True):
    """What became of a recording."""

    file: Path
    """The MCAP file."""
    mib: float | None = None
    """Its size [MiB]; like the counts below left out where the recorder never reported."""
    frames: int | None = None
    """Images in it."""
    messages: int | None = None
    """Messages in it, images not counted."""
    dropped: int | None = None
    """Messages that the recorder could not take in time."""
    refused: int | None = None
    """Messages that were none of their topic."""

    def words(self) -> str:
        """Where it is and what it lost, or why there is none."""
        if not self.ok:
            return f"failed: {self.error}"
        return f"{self.file}, {self.mib:.1f} MiB, {self.dropped} messages dropped"


def percentiles(report: Report, name: str, digits: int = 3) -> Percentiles:
    """The durations of this name in a report, rounded [ms]; zeros where there are none."""
    summary = report.latencies.get(name, NO_TIMES)
    return Percentiles(
        p50=round(summary.p50, digits),
        p99=round(summary.p99, digits),
        max=round(summary.max, digits),
    )


def frame_counts(reports: Iterable[Report], policy: Report) -> FrameCounts:
    """What all processes published, and what the policy made of it."""
    published = sum(report.counters.get("frames_published", 0) for report in reports)
    counters = policy.counters
    return FrameCounts(published, counters.get("frames_used", 0), counters.get("frames_stale", 0))


def recording_result(last: Report | None, path: Path) -> RecordingResult:
    """Of the recorder's file, from its last report."""
    if last is None:
        return RecordingResult(ok=False, file=path, error="the recorder never reported")
    ok = last.state == "complete"
    counters = last.counters
    return RecordingResult(
        ok=ok,
        error=None if ok else last.reason or last.state,
        file=path,
        mib=round(last.values.get("file_mib", 0.0), 3),
        frames=counters.get("frames", 0),
        messages=counters.get("messages", 0),
        dropped=counters.get("dropped", 0),
        refused=counters.get("refused", 0),
    )


class ServeResult(VerbResult, frozen=True, kw_only=True):
    """What was served."""

    bundle: str
    """The bundle."""
    places: dict[str, str]
    """Protocol -> address."""
    counters: dict[str, int]
    """Questions, answers and refusals, by name."""
