"""The result of `trimvla load`. Knows types alone."""

from __future__ import annotations

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.launch.system.results import ControlRate, FrameCounts, Percentiles, RecordingResult
from trimvla.runtime.control.motion_quality import MotionFigures


class LoadSize(msgspec.Struct, frozen=True, kw_only=True):
    """How heavy the load was."""

    cameras: int
    """How many."""
    width: int
    """Of each image [pixels]."""
    height: int
    """Of each image [pixels]."""
    camera_hz: float
    """Images a second, each camera."""
    policy_ms: float
    """What one inference was to take [ms]."""
    priority: int
    """Of the control loop under SCHED_FIFO; 0: none."""


class Ticks(msgspec.Struct, frozen=True):
    """Of the control loop."""

    ticks: int
    """How many there were."""
    late: int
    """Begun later than a tenth of a period."""
    skipped: int
    """Left out, because the one before took longer than a period."""


class CommandCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Commands by the control loop's count, and by the arm's."""

    sent: int
    """Actions and holds together."""
    holds: int
    """Of them, those that keep the robot where it is."""
    obeyed: int
    """Received by the arm in time."""
    lost: int
    """Missing between two sequence numbers."""
    repeated: int
    """Received twice."""
    stale: int
    """Received too late to be obeyed."""


class Assertion(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of --assert."""

    name: str
    """As in the file, with the camera's or the process's name."""
    limit: float
    """At most."""
    measured: float
    """What it was."""
    ok: bool
    """Whether it was kept."""


class LoadResult(VerbResult, frozen=True, kw_only=True):
    """`ok`: the rate was kept to 1 %, no command was lost or repeated, no process grew; with
    --assert instead: every limit was kept, and `error` is the first that was not."""

    seconds: float
    """Of the measurement [s], without the start."""
    load: LoadSize
    """How heavy the load was."""
    control_hz: ControlRate
    """Of the control loop."""
    ticks: Ticks
    """Of the control loop."""
    lag_ms: Percentiles
    """From when a tick was due to its begin."""
    tick_ms: Percentiles
    """Of a tick's own work."""
    period_ms: Percentiles
    """From one command to the next, as the arm receives them."""
    photon_to_action_ms: Percentiles
    """From an image's capture to the command that came of it."""
    commands: CommandCounts
    """Sent and received."""
    frames: FrameCounts
    """Images."""
    frame_period_ms: dict[str, Percentiles]
    """Camera -> from one image's capture to the next."""
    frames_skipped: int
    """Frame numbers that cameras left out."""
    inference_ms: Percentiles
    """Of the stand-in for a policy."""
    memory_mib: dict[str, list[float]]
    """Process -> resident memory at the begin, in the middle and at the end [MiB]."""
    growth_mib: float
    """The most that a process grew from the middle to the end [MiB]; the recorder is not counted.
    """
    cores: dict[str, float]
    """Process -> processor cores that it used; `all`: their sum."""
    motion: MotionFigures
    """How the commands would move an arm: of the stand-in's chunks, so what jitter and holds do to
    them is what counts."""
    assertions: list[Assertion] | None = None
    """With --assert: every limit."""
    recording: RecordingResult | None = None
    """With --record."""
