"""What came of writing a data set, and of playing a bundle over one. Knows types alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.runtime.control.motion_quality import MotionFigures


class DataSetResult(VerbResult, frozen=True, kw_only=True):
    """A LeRobot data set that was written."""

    folder: Path
    """Where it is."""
    episodes: int
    """How many."""
    frames: int
    """Rows of all episodes."""
    fps: float
    """Rows a second."""
    cameras: tuple[str, ...]
    """Whose films are in it."""


class ActionError(msgspec.Struct, frozen=True, kw_only=True):
    """How far a bundle's actions are from the recorded ones, in one dimension."""

    dimension: int
    """Its place in the action."""
    name: str
    """As the data set calls it; empty where it does not."""
    mean_absolute: float
    """Mean of the absolute differences [the action's unit]."""
    root_mean_square: float
    """Root of the mean squared difference [likewise]."""
    of_spread: float | None
    """That over the standard deviation of the recorded actions: 1 is what their mean would have;
    none where they do not move."""


class EpisodeError(msgspec.Struct, frozen=True, kw_only=True):
    """One episode."""

    episode: int
    """Its number in the data set."""
    task: str
    """Its first instruction."""
    frames: int
    """Rows that were compared."""
    of_spread: float | None
    """RMS error over the recorded actions' standard deviation, mean over the dimensions."""
    gripper_agreement: float | None
    """Share of the rows in which both want the gripper on the same side; none without one."""
    jerk_ratio: float | None
    """The bundle's jerk RMS over the recorded one, geometric mean over the dimensions."""


class DataEvalResult(VerbResult, frozen=True, kw_only=True):
    """A bundle over a data set: what it would have done in the recorded situations."""

    bundle: str
    """Which."""
    data: Path
    """The data set's folder."""
    backend: str
    """What executed the stages."""
    fps: float
    """Rows a second."""
    execute: int
    """Rows of a chunk that were compared before the next look."""
    episodes: list[EpisodeError]
    """One by one."""
    frames: int
    """Rows of all."""
    dimensions: list[ActionError]
    """The error of each dimension."""
    gripper_agreement: float | None
    """Share of all rows; none without a gripper."""
    motion: MotionFigures
    """How the bundle's actions would move the robot."""
    recorded_motion: MotionFigures
    """How the recorded ones did."""
