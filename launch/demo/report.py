"""A demonstration's figures, as the processes counted them, and the card for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from trimvla.launch.demo.results import DemoCommands, DemoOutcome, DemoResult
from trimvla.launch.system.episodes import Recording
from trimvla.launch.system.results import (
    ControlRate,
    Percentiles,
    RecordingResult,
    frame_counts,
    percentiles,
)
from trimvla.runtime.bus.messages import Report


def summarise(
    recordings: Sequence[Recording],
    reports: Mapping[str, Report],
    *,
    bundle: str,
    video: Path,
    recording: RecordingResult | None,
) -> DemoResult:
    """All figures of a run."""
    control = reports["control"]
    policy = reports["policy"]
    success = sum(played.success for played in recordings)
    achieved = round(control.values.get("hz_achieved", 0.0), 3)
    return DemoResult(
        ok=success > 0 and (recording is None or recording.ok),
        success=success,
        episodes=len(recordings),
        control_hz=ControlRate(control.values.get("hz_asked", 0.0), achieved),
        inference_ms=percentiles(policy, "inference.total", digits=1),
        photon_to_action_ms=percentiles(control, "photon_to_action", digits=1),
        frames=frame_counts(reports.values(), policy),
        commands=DemoCommands(
            *(control.counters.get(name, 0) for name in DemoCommands.__struct_fields__)
        ),
        outcomes=[outcome_of(played) for played in recordings],
        bundle=bundle,
        video=video,
        recording=recording,
    )


def outcome_of(played: Recording) -> DemoOutcome:
    """One episode's outcome."""
    return DemoOutcome(
        instruction=played.request.instruction,
        seed=played.request.seed,
        success=played.success,
        steps=played.steps,
        seconds=round(played.seconds, 2),
    )


def as_table(result: DemoResult) -> Table:
    """The card."""
    rate = result.control_hz
    frames = result.frames
    sent = result.commands
    table = Table(title="trimvla demo", show_header=False, title_justify="left")
    table.add_row("tasks done", f"{result.success} of {result.episodes}")
    table.add_row("control rate", f"{rate.achieved:.2f} Hz of {rate.asked:g} Hz")
    table.add_row("inference", times(result.inference_ms))
    table.add_row("camera to command", times(result.photon_to_action_ms))
    used = f"{frames.published} published, {frames.used} used, {frames.stale} stale"
    table.add_row("frames", used)
    moved = f"{sent.actions} actions, {sent.holds} holds, {sent.gated} changed by the gate"
    table.add_row("commands", moved)
    table.add_row("film", str(result.video))
    if result.recording is not None:
        table.add_row("recording", result.recording.words())
    return table


def times(found: Percentiles) -> str:
    """Median and 99th percentile."""
    return f"{found.p50:.0f} ms (p99 {found.p99:.0f} ms)"
