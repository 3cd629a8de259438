"""Notices a camera that goes on sending the same picture. Pure: knows pixels, times and positions; passes no judgement.

A sensor has noise, so a living camera never gives the same picture twice; a driver that hangs does, with new sequence
numbers and new capture times. A simulated picture has no noise: there the same picture is suspicious only if the robot
moved meanwhile. Both are measured here: for how long, and how far the robot moved. `observe.AgeBudget` says what is
too much.

Pictures are compared in full, but a sample of rows first: a picture that differs, which is the usual case, is told
apart by the sample. Nothing is copied; the last picture is kept, so it must not be written to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.messages import Frame, JointState

SAMPLED_ROWS = 16  # every so many rows are compared first
KEPT_STATES = 256  # as many positions of the robot as a slow motion takes


@dataclass(frozen=True)
class Still:
    """How long a camera's picture has been the same."""

    since_ns: int
    """Capture of the first picture with these pixels."""
    repeats: int = 0
    """Pictures since then, all with the same pixels."""
    moved: float = 0.0
    """How far the robot moved meanwhile, in the coordinate that moved most [rad or m]."""


def same_pixels(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    """Whether two pictures uint8[h, w, 3] are equal in every pixel."""
    if first.shape != second.shape or not np.array_equal(first[::SAMPLED_ROWS], second[::SAMPLED_ROWS]):
        return False
    return np.array_equal(first, second)


class StillWatch:
    """One camera's pictures, one after the other."""

    def __init__(self) -> None:
        self._last: Frame | None = None
        self._still = Still(0)
        self._states: deque[JointState] = deque(maxlen=KEPT_STATES)

    def look(self, frame: Frame, robot: JointState | None = None) -> Still:
        """Take the newest picture and the newest state of the robot. The same picture looked at twice is no repeat."""
        if robot is not None and (not self._states or robot.time_ns > self._states[-1].time_ns):
            self._states.append(robot)
        last, self._last = self._last, frame
        if last is frame:
            return self._still
        if last is None or not same_pixels(last.image, frame.image):
            self._still = Still(frame.time_ns)
        elif (last.sequence, last.time_ns) != (frame.sequence, frame.time_ns):
            since_ns = self._still.since_ns
            self._still = Still(since_ns, self._still.repeats + 1, self._moved(since_ns, frame.time_ns))
        return self._still

    def _moved(self, start_ns: int, end_ns: int) -> float:
        """Between two captures; only states read in between count, for a picture may be late."""
        positions = [s.position for s in self._states if start_ns <= s.time_ns <= end_ns]
        if len({len(position) for position in positions}) != 1 or not positions[0]:
            return 0.0
        return float(np.ptp(np.array(positions), axis=0).max())
