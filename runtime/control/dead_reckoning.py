"""Where the robot may be by now: what was measured, and what was commanded since.

Pure: numbers, kinds and times.

A joint state can repeat with new times, lag or lie in one joint, and then a workspace that is kept
against it alone is not kept at all. So each dimension has a `pending` motion: commanded, and not
seen in the measurement yet. It shrinks as the measurement moves, and what is left of it (a robot
need not move exactly as commanded) is forgotten only when the measurement has shown that it lives:
it moved by at least half of what was commanded, or moved by itself.

Where more is pending than the robot can be behind its commands, the gate lets no more through in
that direction. A robot at its own limit loses nothing by that, and one whose state is frozen moves
no further. If no dimension at all shows motion meanwhile, or the position never changes by one bit,
the robot does not follow, and the caller holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import JointState
from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.control.safety import Limits, place
from trimvla.runtime.errors import ConfigError

Array = NDArray[np.float64]
SHOWN = 0.1  # of the bound: a motion of so much is no noise
SAMPLES = 16  # of the past in `lag_s`
MEMORY = 3  # times `lag_s`: how far back a motion is compared with what was commanded


@dataclass(frozen=True)
class FollowConfig:
    """How far the robot may be from where its commands must have brought it."""

    lag_s: float = 1.0
    """It may be so far behind, at the fastest motion that the limits allow [s]: its own lag and
    that of its state.
    """
    bound: tuple[float, ...] | None = None
    """Instead, per dimension [m or rad], infinite where there is none. By default what is moved in
    `lag_s`, for absolute targets and in dimensions with a workspace: for others
    `JointState.position` may be of something else.
    """

    def __post_init__(self) -> None:
        if not self.lag_s > 0:
            raise ConfigError(f"expected a time above 0 s, got {self.lag_s!r} for 'lag_s'")
        if self.bound is not None and not all(value > 0 for value in self.bound):
            raise ConfigError(f"expected numbers above 0 for 'bound', got {list(self.bound)}")


class _Trail:
    """What had been commanded and measured at moments of the recent past: a ring of arrays."""

    def __init__(self, length: int, count: int) -> None:
        self.times = np.full(length, -1)
        """int64[N]; -1 where there is nothing yet."""
        self.commanded = np.zeros((length, count))
        self.measured = np.full((length, count), np.nan)
        self._next = 0
        self.newest_ns = -1

    def add(self, time_ns: int, commanded: Array, measured: Array) -> None:
        """One moment in place of the oldest."""
        self.times[self._next] = time_ns
        self.newest_ns = time_ns
        self.commanded[self._next] = commanded
        self.measured[self._next] = measured
        self._next = (self._next + 1) % len(self.times)


class Reckoner:
    """Follows commands and measurements, tick by tick."""

    def __init__(
        self, kinds: Sequence[ActionKind], limits: Limits, hz: float, config: FollowConfig
    ) -> None:
        """For D dimensions at `hz` commands a second."""
        self._kinds = tuple(kinds)
        self._velocity = np.array([kind == "velocity" for kind in kinds])
        self._delta = np.array([kind == "delta" for kind in kinds])
        self._target = np.array([kind == "absolute" for kind in kinds])
        self._reach = fastest(self._kinds, limits, hz) * config.lag_s
        self.bound = self._bounds(limits, config)
        """float64[D], by how much a dimension may be pending."""
        self._shown = SHOWN * self.bound
        self._bounded = bool(np.isfinite(self.bound).any())
        """Whether any dimension is followed at all; without one, only a position that never changes
        is looked for.
        """
        self._coasts = bool(self._velocity.any())
        self._aims = bool(self._target.any())
        self._lag_ns = to_ns(config.lag_s)
        self._spacing_ns = self._lag_ns // SAMPLES
        self._commanded = np.where(self._target, np.nan, 0.0)
        """float64[D]: the sum of motions, or the last target; not a number before the first."""
        self._speed = np.zeros(len(kinds))
        self._measured = np.full(len(kinds), np.nan)
        self._located = np.full(len(kinds), False)
        """Per dimension, whether anything was ever measured."""
        self._now_ns: int | None = None
        self.reset()

    def reset(self) -> None:
        """A person confirms that the robot is where it reports: nothing is pending."""
        count = len(self._kinds)
        self.pending: Array = np.zeros(count)
        """float64[D]: commanded, and not seen in the measurement yet."""
        self._raw: tuple[float, ...] | None = None
        self._path = np.zeros(count)
        self._net = np.zeros(count)
        """Commanded since the position last changed: how far in all, and where to."""
        self._trail = _Trail(SAMPLES * MEMORY, count)
        self._base_commanded = self._commanded.copy()
        self._base_measured = self._measured.copy()
        """Per dimension, where both were when the measurement was last found to live."""
        self._base_ns = np.full(count, -1)
        self._small_ns = np.full(count, -1)
        """Per dimension, when little was unseen for the last time."""

    def measure(self, now_ns: int, robot: JointState | None) -> None:
        """Take in the newest state, or none, at the begin of a tick."""
        self._coast(now_ns)
        fresh = robot if robot is not None and robot.position != self._raw else None
        if fresh is not None:
            self._see(fresh)
        if not self._bounded:
            return
        if fresh is not None:
            self._believe(now_ns)
        if now_ns - self._trail.newest_ns >= self._spacing_ns:
            self._trail.add(now_ns, self._commanded, self._measured)
        self._small_ns[abs(self._unseen()) < self._shown / 2] = now_ns

    def command(self, action: Array) -> None:
        """Take in the command float64[D] that is sent in this tick."""
        if self._coasts:
            self._speed = np.where(self._velocity, action, 0.0)
        if self._aims:
            self._note(np.where(self._target, _known(action - self._commanded), 0.0))
            self._commanded = np.where(self._target, action, self._commanded)
        self._advance(np.where(self._delta, action, 0.0))
        if self._aims:
            self.pending = np.where(self._target, self._apart(), self.pending)

    def judge(self, wanted: Array, before: Array) -> str:
        """Why an action must not be sent, as the robot does not follow; empty where the gate's
        bound will do.

        What leads back to where the measurement stands is let through: a robot that was blocked
        comes free by it.

        Args:
            wanted: float64[D]; one that is not finite is for the gate to refuse.
            before: float64[D], the command before.
        """
        push = _known(wanted - np.where(self._target, before, 0.0))
        return self._never_changes(push) or self._shows_nothing(push)

    def _coast(self, now_ns: int) -> None:
        """A velocity goes on until the next command, however late that is."""
        elapsed_s = 0.0 if self._now_ns is None else max(0, now_ns - self._now_ns) / NS_PER_S
        self._now_ns = now_ns
        if self._coasts:
            self._advance(self._speed * elapsed_s)

    def _advance(self, motion: Array) -> None:
        self._commanded = self._commanded + motion
        self.pending = self.pending + np.where(self._located, motion, 0.0)
        self._note(motion)

    def _note(self, motion: Array) -> None:
        self._path = self._path + abs(motion)
        self._net = self._net + motion

    def _see(self, robot: JointState) -> None:
        """The newest measurement; what is not a number is as it was."""
        self._raw = robot.position
        self._path = np.zeros(len(self._kinds))
        self._net = np.zeros(len(self._kinds))
        found = place(self._kinds, robot.position)
        moved = _known(found - self._measured)
        present = np.isfinite(found)
        first = present & ~self._located
        if first.any():
            self._base_measured = np.where(
                first & np.isnan(self._base_measured), found, self._base_measured
            )
            self._located = self._located | present
        self._measured = np.where(present, found, self._measured)
        self.pending = np.where(self._target, self._apart(), self.pending - moved)

    def _apart(self) -> Array:
        """From the measurement to the last target; 0 before both are known."""
        return _known(self._commanded - self._measured)

    def _unseen(self) -> Array:
        """What was commanded since the measurement was last found to live, and did not show."""
        commanded = self._commanded - self._base_commanded
        seen = self._measured - self._base_measured
        return np.where(self._target, self.pending, _known(commanded - seen))

    def _believe(self, now_ns: int) -> None:
        """Where a measurement was found to live, what is pending is on its way, or came since and
        did not show.
        """
        trail = self._trail
        begin_ns = now_ns - MEMORY * self._lag_ns
        known = trail.times[:, None] >= np.maximum(self._base_ns, begin_ns)
        commanded = self._commanded - trail.commanded
        seen = self._measured - trail.measured
        lives = (lives_by(commanded, seen, self._shown) & known).any(axis=0)
        if lives.any():
            self._base_ns[lives] = now_ns
            self._base_commanded = np.where(lives, self._commanded, self._base_commanded)
            self._base_measured = np.where(lives, self._measured, self._base_measured)
        trusted = (self._base_ns >= 0) & ~self._target
        if trusted.any():
            recent = commanded[trail.times >= begin_ns]
            unseen = self._unseen()
            low = np.fmin(recent.min(axis=0, initial=0.0), unseen)
            high = np.fmax(recent.max(axis=0, initial=0.0), unseen)
            self.pending = np.where(
                trusted, np.minimum(np.maximum(self.pending, low), high), self.pending
            )

    def _never_changes(self, push: Array) -> str:
        """The position is the same to the last bit, whatever it is of."""
        moved = (self._path >= self._reach).nonzero()[0]
        if self._raw is None or not len(moved) or not np.isfinite(self._raw).any():
            return ""
        away = np.where(abs(self._net) >= self._reach / 2, self._net * push, 0.0)
        if (away < 0).any() and not (away > 0).any():
            return ""
        return _reason(
            f"{self._path[moved[0]]:.3g} in dimension {moved[0]}, and 'robot/state' repeats its"
            " position"
        )

    def _shows_nothing(self, push: Array) -> str:
        """More is wanted where too much is unseen, or has been for too long; no dimension has shown
        motion since.
        """
        if not self._bounded:
            return ""
        # a robot that moves less than commanded leaves something pending, and one that lags
        # something unseen
        unseen = self._unseen()
        pending = self.pending
        hidden = np.where(unseen * pending > 0, np.fmin(abs(unseen), abs(pending)), 0.0)
        stuck = (
            (hidden >= self._shown) & (pending * push > 0) & (self._small_ns >= self._base_ns.max())
        )
        if not stuck.any():
            return ""
        far = abs(pending) >= self.bound * (1 - 1e-9)
        silent = (stuck & (far | (self._arrived() & ~self._target))).nonzero()[0]
        if not len(silent):
            return ""
        dimension = silent[0]
        return _reason(
            f"{self.pending[dimension]:.3g} in dimension {dimension} that 'robot/state' does not"
            " show"
        )

    def _arrived(self) -> NDArray[np.bool_]:
        """Per dimension, whether a robot at its slowest has had the time to do all that was
        commanded.
        """
        times = self._trail.times
        begin_ns = (self._now_ns or 0) - self._lag_ns
        recent = self._commanded - self._trail.commanded[times >= begin_ns]
        still = abs(recent).max(axis=0, initial=0.0) < self._shown / 4
        return still & bool(((times >= 0) & (times <= begin_ns)).any())

    def _bounds(self, limits: Limits, config: FollowConfig) -> Array:
        if config.bound is not None:
            return np.array(config.bound, np.float64)
        bordered = np.isfinite(limits.row("workspace_low")) | np.isfinite(
            limits.row("workspace_high")
        )
        return np.where(self._target | bordered, self._reach, np.inf)


def _known(values: Array) -> Array:
    """The values, and 0 for what is not a finite number: `np.nan_to_num` takes ten times as long,
    in every tick.
    """
    return np.where(np.isfinite(values), values, 0.0)


def _reason(what: str) -> str:
    return f"the robot does not follow its commands: {what}"


def lives_by(commanded: Array, seen: Array, shown: Array) -> NDArray[np.bool_]:
    """Whether measured motions `seen` belong to a sensor that lives, where `commanded` was
    commanded: float64[..., D].

    It followed at least half of a motion of `shown` or more, or moved by itself, further than
    commanded.
    """
    far = abs(seen)
    near = abs(commanded)
    with np.errstate(invalid="ignore"):
        follows = (near >= shown) & (seen * commanded >= 0.5 * commanded * commanded)
        leads = (far >= shown) & (far >= 2 * near)
    return (follows | leads) & np.isfinite(shown)


def fastest(kinds: Sequence[ActionKind], limits: Limits, hz: float) -> Array:
    """The fastest motion float64[D] that the limits allow [unit/s]; infinite for a gripper."""
    largest = np.maximum(np.abs(limits.low), np.abs(limits.high))
    by_kind = {
        "delta": largest * hz,
        "velocity": largest,
        "absolute": limits.row("max_change") * hz,
    }
    allowed = np.array(
        [by_kind[kind][i] if kind in by_kind else np.inf for i, kind in enumerate(kinds)]
    )
    return np.minimum(
        allowed, np.where([kind == "gripper" for kind in kinds], np.inf, limits.row("velocity"))
    )
