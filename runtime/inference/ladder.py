"""Which bundle thinks next: the quality ladder.

Pure: times and conditions in, a rung and the reason out.

Rung 0, the top, is the dense bundle; each one below is trimmed further. Three things push down, the
rest is hysteresis:

deadline  calls on this rung take too long. Climbing back needs headroom on what the higher rung is
          expected to take
heat      every so many degrees (or too much power) the ladder ends one rung lower
motion    coarse motion does with a lower rung; near a gripper's event and in slow motion the best
          one is wanted

Between two switches lies the dwell time. Knows seconds, degrees and numbers of rungs; no bundle, no
clock, no sensor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from trimvla.runtime.errors import ConfigError

Cause = Literal["deadline", "heat", "power", "motion", "room"]
# calls that a rung is judged by, and how many must be there
RECENT = 5
ENOUGH = 3


@dataclass(frozen=True)
class LadderConfig:
    """When to leave a rung."""

    deadline_s: float = 0.3
    """What one call may take."""
    headroom: float = 0.8
    """Of the deadline, what a higher rung may be expected to take to be climbed to."""
    patience_s: float = 1.0
    """How long a rung may miss its deadline."""
    dwell_s: float = 2.0
    """Between two switches, at least."""
    retry_s: float = 20.0
    """Before a rung that missed its deadline is tried again."""
    hot_c: float = 85.0
    """From here the top rung is left alone [degrees Celsius]; Orin's modules slow down above 90."""
    step_c: float = 5.0
    """Every so many degrees more, one more rung."""
    relief_c: float = 5.0
    """So much cooler it must be before a rung is given back."""
    max_w: float = math.inf
    """Of the board; above, the top rung is left alone [W]."""
    relief_w: float = 2.0
    coarse: int = 0
    """The rung for coarse motion; 0: motion does not matter."""

    def __post_init__(self) -> None:
        positive = (
            "deadline_s",
            "patience_s",
            "dwell_s",
            "retry_s",
            "step_c",
            "relief_c",
            "max_w",
            "relief_w",
        )
        wrong = [
            f"{name} = {getattr(self, name)}" for name in positive if not getattr(self, name) > 0
        ]
        if wrong or not math.isfinite(self.hot_c):
            raise ConfigError(
                f"expected numbers above 0, got {', '.join(wrong) or f'hot_c = {self.hot_c}'}"
            )
        if not 0 < self.headroom <= 1 or self.coarse < 0:
            numbers = f"{self.headroom} and {self.coarse}"
            raise ConfigError(f"expected 0 < 'headroom' <= 1 and 'coarse' >= 0, got {numbers}")


@dataclass(frozen=True)
class Conditions:
    """The board's readings and the motion's phase now; None where unknown."""

    temperature_c: float | None = None
    power_w: float | None = None
    fine: bool = True
    """Whether the motion is a fine one."""


@dataclass(frozen=True)
class Switch:
    """From one rung to another, and why."""

    before: int
    after: int
    cause: Cause
    reason: str


def level(before: int, value: float | None, limits: Sequence[float], relief: float) -> int:
    """How many rising limits a value is above: a limit counts from where it is reached until
    `relief` below it.
    """
    if value is None:
        return before
    reached = sum(value >= limit for limit in limits)
    held = sum(value > limit - relief for limit in limits)
    return min(max(before, reached), held)


class Ladder:
    """Stands on a rung; receives the calls' times, and decides before each one whether to move."""

    def __init__(self, config: LadderConfig, costs_s: Sequence[float]) -> None:
        """`costs_s`: what a call took on each rung, measured when nothing else ran.

        It begins at the top.
        """
        if config.coarse >= len(costs_s):
            raise ConfigError(
                f"expected 'coarse' below {len(costs_s)}, the number of rungs, got {config.coarse}"
            )
        self._config = config
        self._costs = tuple(costs_s)
        self._heat_limits = [config.hot_c + k * config.step_c for k in range(len(costs_s) - 1)]
        self._heat = self._strain = 0
        self._barred_s = [-math.inf] * len(costs_s)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._slowdown = 1.0
        self._switched_s = -math.inf
        self._late_s: float | None = None
        self.rung = 0
        self.reason = "the top rung, at the start"

    def timed(self, now_s: float, seconds: float) -> None:
        """A call on this rung took so long."""
        self._recent.append(seconds)
        if len(self._recent) >= ENOUGH:
            self._slowdown = median(self._recent) / self._costs[self.rung]
            late = median(self._recent) > self._config.deadline_s
            self._late_s = (now_s if self._late_s is None else self._late_s) if late else None

    def decide(self, now_s: float, conditions: Conditions) -> Switch | None:
        """The rung for the next call is `rung`; what has changed, if anything."""
        config = self._config
        self._heat = level(self._heat, conditions.temperature_c, self._heat_limits, config.relief_c)
        self._strain = level(self._strain, conditions.power_w, [config.max_w], config.relief_w)
        if now_s - self._switched_s < config.dwell_s:
            return None
        floor = self._floor(conditions)
        wanted = self._first_that_fits(now_s, floor)
        if wanted == self.rung:
            return None
        return self._move(now_s, wanted, floor, conditions)

    def expected_s(self, rung: int) -> float:
        """What a call would take now: what it took at first, by as much longer as calls on this
        rung have become.
        """
        return self._costs[rung] * self._slowdown

    def _floor(self, conditions: Conditions) -> int:
        """The highest rung that heat, power and motion allow."""
        wanted = 0 if conditions.fine else self._config.coarse
        return min(max(wanted, self._heat, self._strain), len(self._costs) - 1)

    def _late(self, now_s: float) -> bool:
        return self._late_s is not None and now_s - self._late_s >= self._config.patience_s

    def _first_that_fits(self, now_s: float, floor: int) -> int:
        bottom = len(self._costs) - 1
        return next((rung for rung in range(floor, bottom) if self._fits(now_s, rung)), bottom)

    def _fits(self, now_s: float, rung: int) -> bool:
        if rung == self.rung:
            return not self._late(now_s)
        share = self._config.headroom if rung < self.rung else 1.0
        return (
            now_s >= self._barred_s[rung]
            and self.expected_s(rung) <= share * self._config.deadline_s
        )

    def _move(self, now_s: float, wanted: int, floor: int, conditions: Conditions) -> Switch:
        cause, self.reason = self._why(now_s, wanted, floor, conditions)
        if self._late(now_s):
            for rung in range(self.rung + 1):
                self._barred_s[rung] = now_s + self._config.retry_s
        switch = Switch(self.rung, wanted, cause, self.reason)
        self.rung = wanted
        self._switched_s = now_s
        self._late_s = None
        self._recent.clear()
        return switch

    def _why(
        self, now_s: float, wanted: int, floor: int, conditions: Conditions
    ) -> tuple[Cause, str]:
        """What moved it, in the words of the log."""
        config = self._config
        allowed = f"of {self._config.deadline_s * 1e3:.0f} ms"
        if wanted < self.rung:
            took = f"a call is expected to take {self.expected_s(wanted) * 1e3:.0f} {allowed}"
            return (
                ("motion", f"fine motion; {took}")
                if conditions.fine and config.coarse
                else ("room", took)
            )
        if self._late(now_s):
            return (
                "deadline",
                (
                    f"a call took {median(self._recent) * 1e3:.0f} {allowed} for"
                    f" {config.patience_s:g} s"
                ),
            )
        if self._heat > self.rung and self._heat >= floor:
            measured = (
                ""
                if conditions.temperature_c is None
                else f" at {conditions.temperature_c:.0f} degrees"
            )
            return "heat", f"the board is hot{measured}"
        if self._strain > self.rung and self._strain >= floor:
            return "power", f"expected at most {config.max_w:g} W, got {conditions.power_w} W"
        return "motion", "coarse motion"
