"""How a robot is made to move: jerk, gripper flips, holds by reason, distance to the limits.

Pure numbers, command by command; knows no socket, no policy and no robot. Counts can be added up,
so that episodes of an evaluation, a recording and a running control loop have the same figures.

The jerk is the third derivative of the commanded position, in the action's own unit (m or rad,
degrees where the robot's are) per second cubed:

    delta      a is a motion per row:   (a[t] - 2 a[t-1] + a[t-2]) hz^3
    velocity   a is a motion per second: (a[t] - 2 a[t-1] + a[t-2]) hz^2
    absolute   a is a position:         (a[t] - 3 a[t-1] + 3 a[t-2] - a[t-3]) hz^3
    gripper    none: what counts there is how often it turns round
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimvla.runtime.bundle.manifest import ActionKind

BUCKETS_A_DECADE = 24  # a percentile is right to 5 %
FIRST_DECADE = -6
DECADES = 16
AT_LIMIT = 0.01  # of the range: so near to an end a command counts as on it
OPEN = 0.6  # of the gripper's range: above it is open, below `CLOSED` closed, between as before
CLOSED = 0.4
HISTORY = 4  # commands that a third difference needs
SECONDS_A_MINUTE = 60.0
Pairs = tuple[tuple[int, int], ...]
"""Number of a bucket, and how many fell into it."""


class DimensionMotion(msgspec.Struct, frozen=True, kw_only=True):
    """How one dimension of the action moved."""

    dimension: int
    """Its place in the action."""
    kind: ActionKind
    """What its numbers mean."""
    jerk_rms: float | None
    """Root mean square of the jerk [unit/s^3]; none for a gripper, or before four commands."""
    jerk_p99: float | None
    """99 of 100 jerks were no larger [unit/s^3], to 5 %; likewise."""
    limit_distance: float | None
    """The smallest distance of a command to the nearer end of its range, as a share of the range:
    0 on a limit, 0.5 in the middle; none for a gripper, or where no range is known."""
    at_limit: float | None
    """Share of the commands within 1 % of the range of an end; likewise."""


class MotionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How a robot was made to move."""

    seconds: float
    """So long commands were sent [s]."""
    commands: int
    """How many, holds included."""
    gripper_flips_per_minute: float | None
    """How often a gripper turned from open to closed or back; none without a gripper."""
    held: float
    """Share of the commands that were holds, 0 to 1."""
    holds: dict[str, float]
    """Why it was held -> share of the commands."""
    dimensions: tuple[DimensionMotion, ...]
    """One by one."""


@dataclass(frozen=True)
class MotionCounts:
    """What was counted of one or several stretches of motion; plain numbers, as JSON holds them."""

    kinds: tuple[ActionKind, ...]
    hz: float
    """Commands a second."""
    commands: int = 0
    holds: dict[str, int] = field(default_factory=dict)
    """By reason."""
    flips: int = 0
    """Of all grippers."""
    jerks: int = 0
    """How many jerks were computed."""
    squares: tuple[float, ...] = ()
    """Sum of the squared jerks of each dimension [unit^2/s^6]."""
    buckets: tuple[Pairs, ...] = ()
    """Sizes of the jerks of each dimension."""
    nearest: tuple[float | None, ...] = ()
    """Smallest distance to a limit, as a share of the range; None where it is not known."""
    at_limit: tuple[int, ...] = ()
    """Commands on a limit."""

    @property
    def seconds(self) -> float:
        """So long commands were sent."""
        return self.commands / self.hz

    @property
    def jerk_rms(self) -> NDArray[np.float64]:
        """float64[D] [unit/s^3]; not a number where nothing was computed."""
        if not self.jerks:
            return np.full(len(self.kinds), np.nan)
        return np.sqrt(np.array(self.squares) / self.jerks)

    @property
    def flips_per_minute(self) -> float:
        """0 where nothing was commanded."""
        return self.flips * SECONDS_A_MINUTE / self.seconds if self.commands else 0.0

    @property
    def held(self) -> float:
        """Share of the commands that were holds."""
        return sum(self.holds.values()) / max(1, self.commands)


class MotionMeter:
    """Counts what commands make a robot do, one after the other at a fixed rate."""

    def __init__(
        self,
        kinds: Sequence[ActionKind],
        hz: float,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
    ) -> None:
        """The ends `low` and `high` float[D] of the range may be infinite, or left out: then no
        distance is measured, and a gripper goes from 0 to 1.
        """
        self._kinds = tuple(kinds)
        self._hz = hz
        dim = len(self._kinds)
        bottom = np.full(dim, -np.inf) if low is None else np.asarray(low, np.float64)
        top = np.full(dim, np.inf) if high is None else np.asarray(high, np.float64)
        ranged = np.isfinite(bottom) & np.isfinite(top) & (top > bottom)
        self._low = np.where(ranged, bottom, 0.0)
        self._range = np.where(ranged, top - self._low, 1.0)
        self._gripper = np.array([kind == "gripper" for kind in self._kinds], bool)
        self._unbounded = np.where(ranged & ~self._gripper, 0.0, np.inf)
        self._differences = np.array([_weights(kind, hz) for kind in self._kinds]).T
        self._rows = np.zeros((HISTORY, dim))
        self._known = 0
        self._open: NDArray[np.bool_] | None = None
        self._commands = 0
        self._flips = 0
        self._jerks = 0
        self._holds: Counter[str] = Counter()
        self._squares = np.zeros(dim)
        self._histogram = np.zeros((dim, DECADES * BUCKETS_A_DECADE), np.int64)
        self._nearest = np.full(dim, np.inf)
        self._at_limit = np.zeros(dim, np.int64)
        self._every = np.arange(dim)

    def restart(self) -> None:
        """What comes next does not follow what came: another episode, or a pause."""
        self._known = 0
        self._open = None

    def add(self, action: ArrayLike, held: str | None = None) -> None:
        """One command float[D]; `held`: why it is a hold, if it is one."""
        row = np.asarray(action, np.float64)
        self._commands += 1
        if held is not None:
            self._holds[held] += 1
        if row.shape != (len(self._kinds),) or not np.isfinite(row).all():
            self.restart()
            return
        self._rows[1:] = self._rows[:-1]
        self._rows[0] = row
        self._known = min(HISTORY, self._known + 1)
        share = (row - self._low) / self._range
        self._note_distance(share)
        self._note_gripper(share)
        if self._known == HISTORY:
            self._note_jerk()

    def counts(self) -> MotionCounts:
        """Everything so far."""
        return MotionCounts(
            kinds=self._kinds,
            hz=self._hz,
            commands=self._commands,
            holds=dict(self._holds),
            flips=self._flips,
            jerks=self._jerks,
            squares=tuple(self._squares.tolist()),
            buckets=tuple(_pairs(row) for row in self._histogram),
            nearest=tuple(
                float(value) if math.isfinite(value) else None for value in self._nearest
            ),
            at_limit=tuple(self._at_limit.tolist()),
        )

    def _note_distance(self, share: NDArray[np.float64]) -> None:
        distance = np.maximum(np.minimum(share, 1.0 - share), 0.0) + self._unbounded
        self._nearest = np.minimum(self._nearest, distance)
        self._at_limit += distance <= AT_LIMIT

    def _note_gripper(self, share: NDArray[np.float64]) -> None:
        if self._open is None:
            self._open = share > (OPEN + CLOSED) / 2
            return
        now = np.where(self._open, share >= CLOSED, share > OPEN)
        self._flips += int(((now != self._open) & self._gripper).sum())
        self._open = now

    def _note_jerk(self) -> None:
        jerk = np.abs((self._differences * self._rows).sum(axis=0))
        self._jerks += 1
        self._squares += jerk * jerk
        self._histogram[self._every, _bucket(jerk)] += 1


def merged(counts: Iterable[MotionCounts]) -> MotionCounts:
    """Several stretches as one; there must be one at least, all of the same kinds and rate."""
    first, *others = counts
    for other in others:
        first = _added(first, other)
    return first


def _added(first: MotionCounts, other: MotionCounts) -> MotionCounts:
    nearest = [
        min((value for value in pair if value is not None), default=None)
        for pair in zip(first.nearest, other.nearest, strict=True)
    ]
    return replace(
        first,
        commands=first.commands + other.commands,
        holds=dict(Counter(first.holds) + Counter(other.holds)),
        flips=first.flips + other.flips,
        jerks=first.jerks + other.jerks,
        squares=tuple(np.add(first.squares, other.squares).tolist()),
        buckets=tuple(
            tuple(sorted((Counter(dict(one)) + Counter(dict(two))).items()))
            for one, two in zip(first.buckets, other.buckets, strict=True)
        ),
        nearest=tuple(nearest),
        at_limit=tuple(np.add(first.at_limit, other.at_limit).tolist()),
    )


def figures(counts: MotionCounts, digits: int = 6) -> MotionFigures:
    """What the counts come to, rounded to so many significant digits."""
    commands = max(1, counts.commands)
    return MotionFigures(
        seconds=_rounded(counts.seconds, digits),
        commands=counts.commands,
        gripper_flips_per_minute=_rounded(counts.flips_per_minute, digits)
        if "gripper" in counts.kinds
        else None,
        held=_rounded(counts.held, digits),
        holds={why: _rounded(count / commands, digits) for why, count in counts.holds.items()},
        dimensions=tuple(_dimension(counts, place, digits) for place in range(len(counts.kinds))),
    )


def _dimension(counts: MotionCounts, place: int, digits: int) -> DimensionMotion:
    kind = counts.kinds[place]
    jerky = kind != "gripper" and counts.jerks > 0
    nearest = counts.nearest[place] if counts.nearest else None
    at_limit = counts.at_limit[place] / max(1, counts.commands) if nearest is not None else None
    return DimensionMotion(
        dimension=place,
        kind=kind,
        jerk_rms=_rounded(float(counts.jerk_rms[place]), digits) if jerky else None,
        jerk_p99=_rounded(quantile(counts.buckets[place], 0.99), digits) if jerky else None,
        limit_distance=None if nearest is None else _rounded(nearest, digits),
        at_limit=None if at_limit is None else _rounded(at_limit, digits),
    )


def quantile(buckets: Pairs, share: float) -> float:
    """The size [unit/s^3] that this share of the jerks does not exceed; 0 where there are none."""
    left = math.ceil(share * sum(count for _, count in buckets))
    for bucket, count in buckets:
        left -= count
        if left <= 0:
            return _middle(bucket)
    return 0.0


def as_values(found: MotionFigures) -> dict[str, float]:
    """Figures as the values of a process's report, `<figure>.<dimension>`; what is none is left
    out.
    """
    values = {"held_share": found.held, "motion_s": found.seconds}
    if found.gripper_flips_per_minute is not None:
        values["gripper_flips_per_minute"] = found.gripper_flips_per_minute
    for each in found.dimensions:
        for name in ("jerk_rms", "jerk_p99", "limit_distance", "at_limit"):
            number = getattr(each, name)
            if number is not None:
                values[f"{name}.{each.dimension}"] = number
    return values


def from_values(
    values: Mapping[str, float], counters: Mapping[str, int], kinds: Sequence[ActionKind]
) -> MotionFigures:
    """The inverse of `as_values`; holds come from the report's counters `held.<reason>`."""
    commands = counters.get("actions", 0) + counters.get("holds", 0)
    prefix = "held."
    return MotionFigures(
        seconds=values.get("motion_s", 0.0),
        commands=commands,
        gripper_flips_per_minute=values.get("gripper_flips_per_minute"),
        held=values.get("held_share", 0.0),
        holds={
            name.removeprefix(prefix): _rounded(count / max(1, commands), 6)
            for name, count in counters.items()
            if name.startswith(prefix)
        },
        dimensions=tuple(
            DimensionMotion(
                dimension=place,
                kind=kind,
                jerk_rms=values.get(f"jerk_rms.{place}"),
                jerk_p99=values.get(f"jerk_p99.{place}"),
                limit_distance=values.get(f"limit_distance.{place}"),
                at_limit=values.get(f"at_limit.{place}"),
            )
            for place, kind in enumerate(kinds)
        ),
    )


def _weights(kind: ActionKind, hz: float) -> tuple[float, ...]:
    """What the last four commands, the newest first, weigh in the jerk."""
    if kind == "absolute":
        return (hz**3, -3 * hz**3, 3 * hz**3, -(hz**3))
    if kind == "gripper":
        return (0.0, 0.0, 0.0, 0.0)
    scale = hz**3 if kind == "delta" else hz**2
    return (scale, -2 * scale, scale, 0.0)


def _bucket(jerk: NDArray[np.float64]) -> NDArray[np.int64]:
    decades = np.log10(np.maximum(jerk, 10.0**FIRST_DECADE)) - FIRST_DECADE
    last = DECADES * BUCKETS_A_DECADE - 1
    return np.minimum(np.floor(decades * BUCKETS_A_DECADE), last).astype(np.int64)


def _middle(bucket: int) -> float:
    """0 for the lowest bucket: nothing moved."""
    return 10.0 ** ((bucket + 0.5) / BUCKETS_A_DECADE + FIRST_DECADE) if bucket else 0.0


def _pairs(row: NDArray[np.int64]) -> Pairs:
    return tuple((int(place), int(row[place])) for place in np.flatnonzero(row))


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
