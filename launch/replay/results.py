"""What `trimvla replay` answers. Knows types and what a repeated call gives; repeats none."""

from __future__ import annotations

import math

import msgspec

from trimvla.launch.result import VerbResult
from trimvla.runtime.control.motion_quality import MotionFigures
from trimvla.runtime.record.replay import Difference


class DifferenceResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The call that differs most from the recorded one."""

    chunk: int
    """The chunk's sequence number."""
    episode: int
    """The episode's number."""
    frame: int
    """The image's sequence number."""
    largest: float | None
    """The largest difference, in the robot's units; none where the shapes differ."""
    row: int
    """Row of the chunk."""
    dimension: int
    """Dimension of the action."""
    why: str | None = None
    """Why there is no largest difference; left out where there is one."""


class ReplayResult(VerbResult, frozen=True, kw_only=True):
    """`ok`: every call was repeated, with the same actions within the tolerance."""

    calls: int
    """Policy calls in the recording."""
    repeated: int
    """Of them, those that could be made again."""
    exact: int
    """Of them, those that gave the same bits."""
    worst: DifferenceResult | None
    """None where all are exact."""
    left_out: dict[str, int]
    """Why a call could not be repeated -> how many."""
    cut_off: bool
    """Whether the recording ends in the middle."""
    differs_here: dict[str, tuple[str, str]]
    """What may change the last bits: versions and processor, then and now."""
    motion: MotionFigures | None
    """How the robot was made to move by the recorded commands; none where none was recorded, or
    the recording does not tell what they mean."""
    runs: dict[str, dict[str, str]]
    """Stage -> what ran it."""
    seconds: float
    """Of all repeated calls [s]."""


def difference_result(worst: Difference | None) -> DifferenceResult | None:
    """JSON has no infinity: other shapes have no largest difference."""
    if worst is None:
        return None
    other_shape = math.isinf(worst.largest)
    return DifferenceResult(
        chunk=worst.chunk,
        episode=worst.episode,
        frame=worst.frame,
        largest=None if other_shape else worst.largest,
        row=worst.row,
        dimension=worst.dimension,
        why="another shape" if other_shape else None,
    )
