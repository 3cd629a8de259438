"""The result of `trimvla demo`. Knows types alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.launch.system.results import ControlRate, FrameCounts, Percentiles, RecordingResult


class DemoCommands(msgspec.Struct, frozen=True):
    """What control sent."""

    actions: int
    """Commands that moved the robot."""
    holds: int
    """Commands that kept it where it was."""
    gated: int
    """Actions that the gate changed."""


class DemoOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One episode."""

    instruction: str
    """What the robot was to do."""
    seed: int
    """Of the table."""
    success: bool
    """Whether it did."""
    steps: int
    """Simulated control steps."""
    seconds: float
    """From the task to its end [s]."""


class DemoResult(VerbResult, frozen=True, kw_only=True):
    """`ok`: at least one task was done, and the recording, if any, is complete."""

    success: int
    """Tasks that were done."""
    episodes: int
    """Tasks that were given."""
    control_hz: ControlRate
    """Of the control loop."""
    inference_ms: Percentiles
    """Of the policy."""
    photon_to_action_ms: Percentiles
    """From an image's capture to the command that came of it."""
    frames: FrameCounts
    """Images."""
    commands: DemoCommands
    """What control sent."""
    outcomes: list[DemoOutcome]
    """One an episode."""
    bundle: str
    """What drove the robot."""
    video: Path
    """The film."""
    recording: RecordingResult | None = None
    """With --record."""
