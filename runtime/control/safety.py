"""The last gate before the wire: finite, in range, in the workspace, no faster and no more abrupt
than allowed.

Pure functions; they know numbers and what a dimension means, not robots or time. An action that is
not even numbers of the right count is refused: the caller holds. One that goes beyond a limit is
brought back to it, and the verdict lists it, limit by limit and dimension by dimension.

Every limit is an interval of the action. They are nested in the order of `window`: each is cut to
what those before it leave, so that where two cannot both be kept the earlier one is. All functions
take batches: [..., D].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError

Array = NDArray[np.float64]
Row = tuple[float, ...]

#        kind        relative: to the command before, else to nothing
#                           per_tick: moves by this much a tick, else this much a second
MEANING: dict[ActionKind, tuple[bool, bool]] = {
    "delta": (False, True),
    "velocity": (False, False),
    "absolute": (True, True),
    "gripper": (True, True),
}
UNLIMITED = {
    "max_change": np.inf,
    "velocity": np.inf,
    "acceleration": np.inf,
    "workspace_low": -np.inf,
    "workspace_high": np.inf,
}


@dataclass(frozen=True)
class Limits:
    """Per dimension. All but `low` and `high` may be infinite, or None for all: no such limit."""

    low: Row
    high: Row
    """Range of the action, in its own units."""
    max_change: Row | None = None
    """Of the action, against the command before."""
    velocity: Row | None = None
    """Of the motion that is commanded [unit/s], whatever the kind of action."""
    acceleration: Row | None = None
    """Of that motion [unit/s^2]. A hold of a delta or an absolute target may stop faster."""
    workspace_low: Row | None = None
    workspace_high: Row | None = None
    """Of the position. The i-th dimension that is no gripper moves the i-th entry of
    `JointState.position`. Outside, only motions back are let through; before the border the speed
    falls so that `acceleration` suffices to stop.
    """

    def __post_init__(self) -> None:
        lengths = {name: len(row) for name, row in vars(self).items() if row is not None}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"expected one length for all limits, got {lengths}")
        if not np.isfinite([self.low, self.high]).all() or np.any(np.greater(self.low, self.high)):
            raise ConfigError(f"expected finite 'low' <= 'high', got {self.low} and {self.high}")
        for name in ("max_change", "velocity", "acceleration"):
            row = getattr(self, name)
            if row is not None and not all(value > 0 for value in row):
                raise ConfigError(f"expected numbers above 0 for '{name}', got {row}")
        if not np.all(np.less(self.row("workspace_low"), self.row("workspace_high"))):
            borders = f"{self.workspace_low} and {self.workspace_high}"
            raise ConfigError(f"expected 'workspace_low' < 'workspace_high', got {borders}")

    def row(self, name: str) -> Array:
        """One limit, float64[D]; infinite where there is none."""
        value = getattr(self, name)
        return (
            np.full(len(self.low), UNLIMITED[name])
            if value is None
            else np.array(value, np.float64)
        )


@dataclass(frozen=True, eq=False)
class Motion:
    """What is known of the robot's motion, for the limits on it."""

    kinds: tuple[ActionKind, ...]
    hz: float
    """Commands per second."""
    velocity: Array
    """float64[..., D]: as last commanded [unit/s]; null at rest."""
    position: Array
    """float64[..., D], where it is measured; what is not known is not a number. See `place`."""
    pending: Array | float = 0.0
    """float64[..., D]: what was commanded and is not measured yet; the robot may be anywhere in
    between.
    """
    behind: Array | float = np.inf
    """float64[..., D]: how much may be pending in either direction."""


@dataclass(frozen=True)
class Verdict:
    """What the gate lets through.

    `action` float64[D] within the limits, or None; `reasons` is empty if unchanged.
    """

    action: Array | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bound:
    """One limit as an interval float64[..., D] of the action, with the text for actions outside."""

    what: str
    low: Array
    high: Array


def check(
    action: ArrayLike,
    limits: Limits,
    previous: ArrayLike | None = None,
    motion: Motion | None = None,
) -> Verdict:
    """Judge one action.

    Args:
        action: float[D], what the policy wants.
        limits: for D dimensions.
        previous: float[D], the command before, or where the robot is; none to skip the check of
            changes. One that is not finite or not of D numbers is refused like an action.
        motion: for the limits of workspace, velocity and acceleration; they need `previous` too.

    Returns:
        A verdict whose action, if there is one, is finite and keeps all limits, or the earlier ones
        of `window` where they contradict each other.
    """
    wanted = np.asarray(action, np.float64)
    before = wanted if previous is None else np.asarray(previous, np.float64)
    problems = (
        *_problems("action", wanted, limits),
        *_problems("previous command", before, limits),
    )
    if problems or (problems := _unplaced(limits, motion)):
        return Verdict(None, problems)
    bounds = window(limits, None if previous is None else before, motion)
    low, high = nest(bounds)
    allowed = np.minimum(np.maximum(wanted, low), high)
    changed = allowed != wanted
    return Verdict(allowed, _reasons(wanted, changed, bounds) if changed.any() else ())


def window(limits: Limits, previous: Array | None, motion: Motion | None) -> list[Bound]:
    """All limits as intervals of the action, the ones that are kept first at first.

    Args:
        limits: for D dimensions.
        previous: float64[..., D], the command before, finite.
        motion: of the robot.
    """
    rows = _rows(limits)
    bounds = [Bound("out of range", rows["low"], rows["high"])]
    if previous is None:
        return bounds
    if motion is not None:
        bounds += _motion_bounds(limits, previous, motion)
    bounds.append(Bound("too sudden", previous - rows["max_change"], previous + rows["max_change"]))
    return bounds if motion is None else [*bounds, _following(previous, motion)]


def nest(bounds: Sequence[Bound]) -> tuple[Array, Array]:
    """The interval of the first bound, cut by each of the others to what is left; never empty."""
    low = bounds[0].low
    high = bounds[0].high
    for bound in bounds[1:]:
        inner_low = np.minimum(np.maximum(bound.low, low), high)
        high = np.minimum(np.maximum(bound.high, low), high)
        low = inner_low
    return low, high


def speed(kinds: tuple[ActionKind, ...], hz: float, action: Array, previous: Array) -> Array:
    """The motion float64[..., D] that an action commands after `previous` [unit/s]."""
    relative, per_second = _meaning(kinds, hz)
    return (action - np.where(relative, previous, 0.0)) * per_second


def place(kinds: Sequence[ActionKind], position: Sequence[float]) -> Array:
    """`JointState.position` as float64[D]: each entry at its dimension, not a number where there is
    none.
    """
    entries = iter(position)
    placed = np.array([np.nan if kind == "gripper" else next(entries, np.nan) for kind in kinds])
    return np.where(np.isfinite(placed), placed, np.nan)


def _motion_bounds(limits: Limits, previous: Array, motion: Motion) -> list[Bound]:
    """Limits of the motion [unit/s], turned into intervals of the action; none for a limit that no
    dimension has.
    """
    rows = _rows(limits)
    limited = _limited(limits)
    relative, per_second = _meaning(motion.kinds, motion.hz)
    base = np.where(relative, previous, 0.0)
    intervals = []
    if limited & {"workspace_low", "workspace_high"}:
        lowest, highest = _whereabouts(
            np.where(relative, previous, motion.position), relative, motion.pending
        )
        room = _room(lowest - rows["workspace_low"]), _room(rows["workspace_high"] - highest)
        back, ahead = (_stoppable(distance, rows["acceleration"], motion.hz) for distance in room)
        intervals.append(("out of the workspace", -back, ahead))
    if "velocity" in limited:
        intervals.append(("too fast", -rows["velocity"], rows["velocity"]))
    if "acceleration" in limited:
        step = rows["acceleration"] / motion.hz
        intervals.append(("too abrupt", motion.velocity - step, motion.velocity + step))
    return [
        Bound(what, base + low / per_second, base + high / per_second)
        for what, low, high in intervals
    ]


def _following(previous: Array, motion: Motion) -> Bound:
    """How far the robot may be from where its commands must have brought it; to stand still is
    always allowed.
    """
    relative, per_second = _meaning(motion.kinds, motion.hz)
    base = np.where(relative, previous, 0.0)
    # what a target is ahead of the measurement already stands in `pending`, as a delta's does
    low = np.minimum(0.0, -motion.behind - motion.pending) * motion.hz / per_second
    high = np.maximum(0.0, motion.behind - motion.pending) * motion.hz / per_second
    return Bound("not followed", base + low, base + high)


def _whereabouts(
    here: Array, relative: NDArray[np.bool_], pending: Array | float
) -> tuple[Array, Array]:
    """The lowest and the highest place where the robot may be.

    A target is where it will be, whatever is pending.
    """
    reckoned = here + np.where(relative, 0.0, pending)
    return np.fmin(here, reckoned), np.fmax(here, reckoned)


def _room(distance: Array) -> Array:
    """How far it is to a border; beyond it nothing, and any way where there is no border or no
    position.
    """
    return np.where(np.isnan(distance), np.inf, np.maximum(distance, 0.0))


def _stoppable(distance: Array, acceleration: Array, hz: float) -> Array:
    """The speed v from which it is possible to stop within a distance d, moving on for one period T
    at first.

    d = v T + v^2 / (2 A), solved for v without cancellation; with A without limit v = d / T.
    """
    period = 1 / hz
    free = np.isinf(distance)
    d = np.where(free, 0.0, distance)
    return np.where(free, np.inf, 2 * d / (np.sqrt(period**2 + 2 * d / acceleration) + period))


@lru_cache(maxsize=16)
def _rows(limits: Limits) -> dict[str, Array]:
    return {"low": np.array(limits.low), "high": np.array(limits.high)} | {
        name: limits.row(name) for name in UNLIMITED
    }


@lru_cache(maxsize=16)
def _limited(limits: Limits) -> frozenset[str]:
    """Names of the limits that one dimension has at least."""
    return frozenset(name for name, row in _rows(limits).items() if np.isfinite(row).any())


@lru_cache(maxsize=16)
def _meaning(kinds: tuple[ActionKind, ...], hz: float) -> tuple[NDArray[np.bool_], Array]:
    """Per dimension: whether it is relative to the command before, and commands' units to units per
    second.
    """
    relative = np.array([MEANING[kind][0] for kind in kinds])
    return relative, np.array([hz if MEANING[kind][1] else 1.0 for kind in kinds])


def _problems(name: str, value: Array, limits: Limits) -> tuple[str, ...]:
    """Why `value` cannot be judged, if it cannot."""
    if value.shape != (len(limits.low),):
        return (f"{name}: expected {len(limits.low)} numbers, got shape {list(value.shape)}",)
    if not np.isfinite(value).all():
        return (f"{name}: not finite in dimension {_where(~np.isfinite(value))}",)
    return ()


def _unplaced(limits: Limits, motion: Motion | None) -> tuple[str, ...]:
    """Reasons why a workspace cannot be kept: the robot's position is unknown.

    Absolute targets need none: they are positions themselves.
    """
    if motion is None or (limits.workspace_low is None and limits.workspace_high is None):
        return ()
    rows = _rows(limits)
    bordered = np.isfinite(rows["workspace_low"]) | np.isfinite(rows["workspace_high"])
    lost = bordered & ~_meaning(motion.kinds, motion.hz)[0] & ~np.isfinite(motion.position)
    return (f"position: unknown in dimension {_where(lost)}",) if lost.any() else ()


def _reasons(wanted: Array, changed: NDArray[np.bool_], bounds: Sequence[Bound]) -> tuple[str, ...]:
    outside = [
        (bound.what, changed & ((wanted < bound.low) | (wanted > bound.high))) for bound in bounds
    ]
    return tuple(f"{what} in dimension {_where(mask)}" for what, mask in outside if mask.any())


def _where(mask: NDArray[np.bool_]) -> str:
    return ", ".join(map(str, np.flatnonzero(mask)))
