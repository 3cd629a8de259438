"""The figures of a system under load: from reports to a result, and the card for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from trimvla.launch.load.results import CommandCounts, LoadResult, LoadSize, Ticks
from trimvla.launch.load.system import Usage
from trimvla.launch.motion.table import jerk_words, motion_line
from trimvla.launch.system.results import (
    ControlRate,
    Percentiles,
    RecordingResult,
    frame_counts,
    percentiles,
)
from trimvla.launch.system.setup.observers import RECORDER
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.control.controller import ControlConfig
from trimvla.runtime.control.motion_quality import from_values

GROWTH_MIB = 2.0  # per process and from the middle to the end: what an allocator may do
CAMERA = "camera-"  # before a camera's name, in its process's
KINDS = ControlConfig.kinds  # of the arm under load
KEPT_RATE = 0.99  # of the configured rate


def summarise(
    seconds: float,
    size: LoadSize,
    reports: Mapping[str, Report],
    usage: Sequence[Mapping[str, Usage]],
    recording: RecordingResult | None,
) -> LoadResult:
    """All figures.

    Args:
        seconds: of the measurement.
        size: of the load.
        reports: the last of every process.
        usage: at the begin, in the middle and at the end.
        recording: what became of it, where there was one.
    """
    control = reports["control"]
    arm = reports["arm"]
    policy = reports["policy"]
    memory = {name: [round(each[name].mib, 1) for each in usage] for name in usage[0]}
    growth = grown(memory)
    rate = ControlRate(control.values["hz_asked"], round(control.values["hz_achieved"], 3))
    commands = command_counts(control, arm)
    kept = control.values["hz_achieved"] >= KEPT_RATE * rate.asked
    return LoadResult(
        ok=kept and commands.lost == commands.repeated == 0 and growth <= GROWTH_MIB,
        seconds=seconds,
        load=size,
        control_hz=rate,
        ticks=Ticks(*(control.counters.get(name, 0) for name in Ticks.__struct_fields__)),
        lag_ms=percentiles(control, "lag"),
        tick_ms=percentiles(control, "tick"),
        period_ms=percentiles(arm, "command_period"),
        photon_to_action_ms=percentiles(control, "photon_to_action"),
        commands=commands,
        frames=frame_counts(reports.values(), policy),
        frame_period_ms={
            name.removeprefix(CAMERA): percentiles(report, "frame_period")
            for name, report in reports.items()
            if name.startswith(CAMERA)
        },
        frames_skipped=sum(report.counters.get("frames_skipped", 0) for report in reports.values()),
        inference_ms=percentiles(policy, "inference.total"),
        memory_mib=memory,
        growth_mib=round(growth, 1),
        cores=cores_used(usage[0], usage[-1], seconds),
        recording=recording,
        motion=from_values(control.values, control.counters, KINDS),
    )


def grown(memory: Mapping[str, Sequence[float]]) -> float:
    """The most that a process grew from the middle to the end [MiB].

    A recorder fills chunks and keeps an index of them: it grows by what it is for.
    """
    return max(values[-1] - values[1] for name, values in memory.items() if name != RECORDER)


def command_counts(control: Report, arm: Report) -> CommandCounts:
    """What control sent, and what the arm reports came of it."""
    counts = {name: arm.counters.get(name, 0) for name in ("obeyed", "lost", "repeated", "stale")}
    holds = control.counters.get("holds", 0)
    return CommandCounts(sent=control.counters.get("actions", 0) + holds, holds=holds, **counts)


def cores_used(
    begin: Mapping[str, Usage], end: Mapping[str, Usage], seconds: float
) -> dict[str, float]:
    """Processor time over time, by process and in all."""
    cores = {name: round((end[name].cpu_s - begin[name].cpu_s) / seconds, 3) for name in begin}
    return {**cores, "all": round(sum(cores.values()), 3)}


def as_table(result: LoadResult) -> Table:
    """The card."""
    title = f"trimvla load, {result.seconds:g} s"
    table = Table(title=title, show_header=False, title_justify="left")
    rate = result.control_hz
    ticks = result.ticks
    frames = result.frames
    late = f"{ticks.late} late by a tenth of a period"
    table.add_row("control rate", f"{rate.achieved:.3f} Hz of {rate.asked:g} Hz")
    table.add_row("ticks", f"{ticks.ticks}, {late}, {ticks.skipped} skipped")
    table.add_row("lag of a tick", times(result.lag_ms))
    table.add_row("from command to command", times(result.period_ms))
    table.add_row("camera to command", times(result.photon_to_action_ms))
    table.add_row("commands", command_words(result.commands))
    used = f"{frames.published} published, {frames.used} used, {frames.stale} stale"
    table.add_row("frames", used)
    table.add_row("inference", times(result.inference_ms))
    for name, (begin, middle, end) in result.memory_mib.items():
        memory = f"{begin:.1f}, {middle:.1f}, {end:.1f} MiB: begin, middle, end"
        table.add_row(name, f"{memory}; {result.cores[name]:.2f} cores")
    table.add_row("motion", motion_line(result.motion))
    table.add_row("jerk", jerk_words(result.motion))
    for row in result.assertions or ():
        verdict = "kept" if row.ok else "NOT kept"
        table.add_row(row.name, f"{row.measured:g}, at most {row.limit:g}: {verdict}")
    if result.recording is not None:
        table.add_row("recording", result.recording.words())
    return table


def times(found: Percentiles) -> str:
    """Percentiles in words."""
    return f"p50 {found.p50:.2f}, p99 {found.p99:.2f}, max {found.max:.2f} ms"


def command_words(sent: CommandCounts) -> str:
    """Commands in words."""
    arm = f"{sent.obeyed} obeyed, {sent.lost} lost, {sent.repeated} repeated, {sent.stale} stale"
    return f"{sent.sent} sent, {sent.holds} holds; the arm: {arm}"
