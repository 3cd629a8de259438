"""Notices a camera whose images are new and show nothing new.

Pure: knows pixels, times, positions; judges nothing.

A sensor has noise, so a living camera never gives the same pixels twice; a driver that hangs gives
one old buffer, or several in turn, with new sequence numbers and new capture times. Simulated
images have no noise, and what is frozen may be encoded anew or carry a clock, so its pixels are
new. Then only the robot's motion shows it: the camera still shows what it showed before. Hence
two measurements, each with the time that it lasts and the robot's motion meanwhile:

    same    the pixels of an earlier image, but for a few points
    alike   what an earlier image shows, in other pixels: the same but for encoding, noise and
            brightness; or, from a camera that has shown a sensor's noise, the points of earlier
            images but for one small place, such as that of a clock or a lamp

The motion is that since the earlier image was first seen: a robot that comes back may find the same
image. An image is compared with the newest 32: no driver has more buffers. `observe.AgeBudget` sets
the limits.

What is `alike` is measured, and a measurement errs: now and then a frozen image that is encoded
anew looks like another one. Hence hysteresis: beyond the limit of motion one such image is not
enough, several in a row must show something else than what was frozen.

Cannot be noticed: `alike` while the robot stands still; a clock on a frozen image without noise, or
with noise added to all of it: a simulated or a living camera that sees little of its robot gives
the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import Frame, JointState
from trimvla.runtime.inference.likeness import (
    CELLS,
    Sample,
    alike,
    count_different,
    sample,
    textured,
)

KEPT_STATES = 256  # as many positions of the robot as a slow motion takes
KEPT_IMAGES = 32  # as many buffers as a driver of Linux may have
# equal images before a motion makes them suspicious: one may have been taken just before it
MIN_REPEATS = 2
# images in a row that show something else before a camera is believed again
BELIEVED_AFTER = 3
FEW_POINTS = 4  # of 16,384 that may differ between images with the same pixels
# of the cells with structure: a clock over a tenth of the image touches so many at most
SMALL_PLACE = 0.2
NEARLY_ALL = 0.9  # of the cells with structure: a sensor's noise makes so many new in every image
LIVING = 10  # images in a row of which that is true show that the camera has a sensor


@dataclass(frozen=True)
class Still:
    """For how long a camera's images have shown nothing new."""

    since_ns: int
    """Capture of the last image that did show something new."""
    repeats: int = 0
    """Images since then."""
    moved: float = 0.0
    """How far the robot moved meanwhile, in the coordinate that moved most [rad or m]."""

    def grow(self, moved: float) -> Still:
        """With one image more."""
        return Still(self.since_ns, self.repeats + 1, max(self.moved, moved))

    def beyond(self, limit: float | None) -> bool:
        """Whether the robot moved further than this meanwhile [rad or m]; None is no limit."""
        return limit is not None and self.repeats >= MIN_REPEATS and self.moved > limit


@dataclass(frozen=True)
class Stills:
    """Both measurements of one camera."""

    same: Still
    alike: Still


@dataclass(eq=False)
class _Seen:
    """An image, when it was taken and where the robot was then: the first state from its capture
    on.
    """

    image: Sample
    time_ns: int
    state: JointState | None


class Streak:
    """A measurement that errs now and then, with hysteresis.

    One image that shows something else ends it, unless the robot moved beyond the limit meanwhile:
    then several in a row do. Pure.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._others = 0  # images in a row that showed something else
        self.still = Still(0)

    @property
    def doubted(self) -> bool:
        """Whether it lasts beyond the limit."""
        return self.still.beyond(self._limit)

    def go_on(self, moved: float) -> Still:
        """With an image that shows the same, and the motion since then."""
        self._others = 0
        self.still = self.still.grow(moved)
        return self.still

    def interrupt(self, time_ns: int) -> Still:
        """With an image that shows something else, and its time of capture."""
        self._others += 1
        if self.doubted and self._others < BELIEVED_AFTER:
            self.still = self.still.grow(0.0)
        else:
            self._others = 0
            self.still = Still(time_ns)
        return self.still


class FrozenFrameDetector:
    """One camera's images, one after the other."""

    def __init__(self, alike_limit: float | None = None) -> None:
        """`alike_limit`: `AgeBudget.frozen_alike`, for the hysteresis; None is without."""
        self._key = (-1, -1)
        self._last = Stills(Still(0), Still(0))
        self._place = Streak(alike_limit)
        self._scene = Streak(alike_limit)
        self._shown: list[_Seen] = []  # what the images of self._scene were alike
        self._changed = np.zeros(CELLS, np.bool_)  # where images were new since self._place began
        self._living = 0  # images in a row that were new nearly everywhere
        self._states: deque[JointState] = deque(maxlen=KEPT_STATES)
        self._seen: deque[_Seen] = deque(maxlen=KEPT_IMAGES)  # all of different pixels
        self._scenes: deque[_Seen] = deque(maxlen=KEPT_IMAGES)  # the first of those that are alike

    def look(self, frame: Frame, robot: JointState | None = None) -> Stills:
        """Take the newest image and the newest state of the robot.

        The same frame looked at twice is no repeat.
        """
        self._note(robot)
        if (frame.sequence, frame.time_ns) == self._key:
            return self._last
        self._key = (frame.sequence, frame.time_ns)
        seen = _Seen(sample(frame.image), frame.time_ns, self._state_from(frame.time_ns))
        equal = _equal_cells(self._seen, seen.image)
        known = [self._seen[i] for i in np.flatnonzero(equal.sum(axis=1) >= CELLS - FEW_POINTS)]
        known = [old for old in known if count_different(old.image, seen.image) <= 3 * FEW_POINTS]
        place = self._change(seen, np.asarray(~equal.any(axis=0)))
        scene = self._recognise(seen)
        same = (
            self._last.same.grow(self._least_moved(known, seen)) if known else Still(seen.time_ns)
        )
        if not known:
            self._seen.append(seen)
        self._last = Stills(same, max(place, scene, key=lambda still: still.moved))
        return self._last

    def _note(self, robot: JointState | None) -> None:
        """Remember a state, also as that of images that came before any later state."""
        if robot is None or (self._states and robot.time_ns <= self._states[-1].time_ns):
            return
        self._states.append(robot)
        for seen in (*self._seen, *self._scenes):
            if seen.state is None and robot.time_ns >= seen.time_ns:
                seen.state = robot

    def _state_from(self, time_ns: int) -> JointState | None:
        return next((state for state in self._states if state.time_ns >= time_ns), None)

    def _state_until(self, time_ns: int) -> JointState | None:
        return next((state for state in reversed(self._states) if state.time_ns <= time_ns), None)

    def _least_moved(self, known: list[_Seen], seen: _Seen) -> float:
        """From the first capture of any of these to this one; only states in between count, for an
        image may be late.

        The least, for one of them may have been seen from where the robot is.
        """
        newest = self._state_until(seen.time_ns)
        return min(_distance(old.state, newest) for old in known)

    def _change(self, seen: _Seen, new: NDArray[np.bool_]) -> Still:
        """Whether only one small place is new, although the camera's noise made all of every image
        new before.
        """
        changed = self._changed | new
        cells = (
            CELLS
            if new.all() or not changed.any()
            else int((textured(seen.image.points) | changed).sum())
        )
        has_noise = self._living >= LIVING
        if not has_noise:
            self._living = self._living + 1 if new.sum() > NEARLY_ALL * cells else 0
        if changed.sum() > SMALL_PLACE * cells:
            still = self._place.interrupt(seen.time_ns)
            if not self._place.doubted:
                self._changed = np.zeros(CELLS, np.bool_)
            return still
        self._changed = changed
        if not has_noise:
            return self._place.go_on(0.0)
        start = self._state_from(self._place.still.since_ns)
        newest = self._state_until(seen.time_ns)
        return self._place.go_on(_distance(start, newest))

    def _recognise(self, seen: _Seen) -> Still:
        """Whether it is alike an earlier image; if not, it is kept as the first of its kind.

        Of a camera that is doubted only what it showed meanwhile counts: a robot that holds gives
        living images that are alike each other.
        """
        found = (
            alike(np.array([old.image.grey for old in self._scenes]), seen.image.grey)
            if self._scenes
            else []
        )
        known = [self._scenes[i] for i in np.flatnonzero(found)]
        moved = self._least_moved(known, seen) if known else 0.0
        if not known:
            self._scenes.append(seen)
        elif not self._scene.doubted or any(old in self._shown for old in known):
            self._shown = [old for old in self._scenes if old in known or old in self._shown]
            return self._scene.go_on(moved)
        still = self._scene.interrupt(seen.time_ns)
        if not self._scene.doubted:
            self._shown = []
        return still


def _equal_cells(known: Collection[_Seen], image: Sample) -> NDArray[np.bool_]:
    """bool[n, 256]: which cells of each image that is kept equal those of this one."""
    marks = np.array([old.image.marks for old in known], np.uint64).reshape(-1, CELLS)
    return marks == image.marks


def _distance(first: JointState | None, last: JointState | None) -> float:
    """Between two states, in the coordinate that differs most [rad or m]; 0 where it is not known.

    A whole turn is none: an angle jumps by it where its range ends.
    """
    if (
        first is None
        or last is None
        or last.time_ns < first.time_ns
        or len(first.position) != len(last.position)
    ):
        return 0.0
    gaps = np.abs(np.subtract(last.position, first.position))
    return float(np.abs(gaps - 2 * np.pi * np.round(gaps / (2 * np.pi))).max(initial=0.0))
