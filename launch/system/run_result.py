"""What `trimvla run` answers: the processes' last reports, and what was missing.

Knows reports; starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.launch.system.results import Percentiles, RecordingResult, recording_result
from trimvla.launch.system.setup.observers import RECORDER
from trimvla.runtime.bus.messages import Report


class ProcessResult(msgspec.Struct, frozen=True):
    """A process's last report."""

    state: str
    """In its own words, such as `running`."""
    counters: dict[str, int]
    """What it counted since its start."""
    values: dict[str, float]
    """Its latest figures, by name."""


class RunResult(VerbResult, frozen=True, kw_only=True):
    """`ok`: nothing failed, and all that was requested was given."""

    seconds: float
    """From start to end [s]."""
    processes: dict[str, ProcessResult]
    """Process -> its last report."""
    photon_to_action_ms: Percentiles | None = None
    """From an image's capture to the command that came of it; left out where there was none."""
    recording: RecordingResult | None = None
    """With --record."""


def result_of(
    last: Mapping[str, Report], lacks: list[str], seconds: float, record: Path | None
) -> RunResult:
    """The last reports and the recording as one answer; `lacks` is what was not given."""
    recording = None
    if record is not None:
        recording = recording_result(last.get(RECORDER), record)
        if recording.error is not None:
            lacks = [*lacks, recording.error]
    times = (report.latencies.get("photon_to_action") for report in last.values())
    found = next((summary for summary in times if summary is not None), None)
    return RunResult(
        ok=not lacks,
        error="; ".join(dict.fromkeys(lacks)) or None,
        seconds=seconds,
        processes={
            name: ProcessResult(report.state, report.counters, report.values)
            for name, report in last.items()
        },
        photon_to_action_ms=None if found is None else Percentiles(found.p50, found.p99, found.max),
        recording=recording,
    )
