"""Further pictures of a moment: object and target are put elsewhere, looked at, and put back.

A scene is rebuilt and played for one place and one turn of its object; what limits the turn's
read-out is the number of turns that are seen, not of pictures. A picture of the same arm over
another scene costs the rendering alone, and its label is the expert's as ever, for that has no
memory. Half of the new places are about the tool, where a policy's last errors are made. Knows an
episode and the expert's state; knows no shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trimvla.sim.simpler.env import SimplerEpisode, SimplerTask, long_yaw
from trimvla.sim.simpler.expert import OPENED, State, held
from trimvla.sim.simpler.twins import times_yaw

TRIES = 20  # to draw places at which nothing is inside of something else
AT_REST = 0.004  # an object this near to the height at which it began lies as it began [m]
ABOUT = 0.02  # spread of places about the tool [m]
ASKEW = 0.35  # spread of turns about the tool's [rad]
ABOVE = 0.055  # from this height over the object on, the fingers are free of it [m]
CLEAR = 0.10  # fingers that are lower are at least so far from a place [m]
CARRIED = 0.07  # from this height over the target on, an object in hand is free of it [m]
ASIDE = 0.13  # one that is lower is at least so far from the target [m]
SAME = 0.01  # a target that is put this near to where it was is one that is never elsewhere [m]
ANY_TURN = 0.4  # share of the turns that are drawn from the whole circle


@dataclass(frozen=True)
class Scatter:
    """Draws other places for what lies in a task's scene."""

    task: SimplerTask
    rest: float
    """Height of the object where it lay at the episode's beginning [m]."""

    def look(
        self, episode: SimplerEpisode, count: int, rng: np.random.Generator
    ) -> Iterator[SimplerEpisode]:
        """The episode with object and target put elsewhere, at most `count` times; afterwards all
        is as it was.
        """
        state = episode.state()
        kept = episode.poses()
        for _ in range(count):
            drawn = self._drawn(state, kept, rng)
            if drawn is None:
                continue
            episode.put(*drawn)
            try:
                yield episode
            finally:
                episode.put(*kept)

    def _drawn(
        self, state: State, kept: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """New poses float[7] of object and target; None where the moment allows none."""
        resting = abs(state.thing[2] - self.rest) < AT_REST and state.opening >= OPENED
        for _ in range(TRIES):
            if held(state):
                drawn = self._other_target(state, kept, rng)
            elif resting and not state.done:
                drawn = self._other_places(state, kept, rng)
            else:
                return None
            if drawn is not None:
                return drawn
        return None

    def _other_target(
        self, state: State, kept: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The target alone is put elsewhere: the object is in hand."""
        thing, target = (pose.copy() for pose in kept)
        target[:2] = self.task.drawn(rng)[0][1, :2]
        low = thing[2] - target[2] < CARRIED
        if _same_place(target, kept[1]) or (low and math.dist(thing[:2], target[:2]) < ASIDE):
            return None
        return thing, target

    def _other_places(
        self, state: State, kept: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        thing, target = (pose.copy() for pose in kept)
        places, turns = self.task.drawn(rng)
        thing[:2] = places[0, :2]
        if not _same_place(places[1], target):
            target[:2] = places[1, :2]
        yaw = long_yaw(turns[0].astype(np.float64))
        if rng.random() < ANY_TURN:
            yaw = float(rng.uniform(-math.pi, math.pi))
        high = state.tool[2] - thing[2] > ABOVE
        if high and rng.random() < 0.5:
            thing[:2] = np.array(state.tool[:2]) + rng.normal(0.0, ABOUT, 2)
            if rng.random() < 0.7:
                yaw = state.yaw + float(rng.normal(0.0, ASKEW)) + math.pi * int(rng.integers(2))
        thing[3:] = times_yaw(yaw - long_yaw(kept[0][3:]), kept[0][3:])
        near = min(math.dist(state.tool[:2], pose[:2]) for pose in (thing, target))
        apart = math.dist(thing[:2], target[:2]) > self.task.twin.apart
        inside = self.task.reaches(thing)
        return (thing, target) if apart and inside and (high or near > CLEAR) else None


def _same_place(one: np.ndarray, other: np.ndarray) -> bool:
    return math.dist(one[:2], other[:2]) < SAME
