"""What one episode came to, and what many of one policy add up to: a rate, its interval, counts by
kind.

Plays nothing and compares nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from trimvla.runtime.control.motion_quality import MotionCounts, MotionFigures, figures, merged
from trimvla.sim.evaluation.statistics import wilson_interval

WAITS = ""  # the condition in which the simulator waits while the policy thinks


@dataclass(frozen=True)
class Outcome:
    """One episode. `seed` is its index on the task; `verb` the kind of what was asked."""

    seed: int
    verb: str
    instruction: str
    success: bool
    steps: int
    latency: str = WAITS
    """The condition: the name of the latency that was charged."""
    latency_ms: float = 0.0
    """What a look was charged on average."""
    held: int = 0
    """Steps without an action that was due."""
    motion: MotionCounts | None = None
    """How the robot was made to move; none in files from before it was counted."""
    inference_ms: float = field(default=0.0, compare=False)
    """What a look took on the machine that played, median: the one field that differs from run to
    run."""


class Success(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often one policy succeeded."""

    success_rate: float
    """Share of the episodes, 0 to 1."""
    interval: tuple[float, float]
    """Wilson's interval of that rate at 95 %."""
    episodes: int
    """How many were played."""
    successes: int
    """How many of them succeeded."""
    by_verb: dict[str, tuple[int, int]]
    """Kind of task -> successes and episodes."""
    mean_steps: float | None
    """Of the episodes that succeeded; none where none did."""
    outcomes: list[int]
    """1 for a success, else 0, by rising seed."""
    motion: MotionFigures | None = None
    """How the robot was made to move in all episodes; left out where it was not counted."""


def success_of(results: Sequence[Outcome]) -> Success:
    """What outcomes add up to, in any order of the seeds."""
    ordered = sorted(results, key=lambda outcome: outcome.seed)
    successes = sum(outcome.success for outcome in ordered)
    by_verb: dict[str, list[bool]] = defaultdict(list)
    for outcome in ordered:
        by_verb[outcome.verb].append(outcome.success)
    steps = [outcome.steps for outcome in ordered if outcome.success]
    return Success(
        success_rate=successes / len(ordered),
        interval=wilson_interval(successes, len(ordered)),
        episodes=len(ordered),
        successes=successes,
        by_verb={verb: (sum(won), len(won)) for verb, won in sorted(by_verb.items())},
        mean_steps=sum(steps) / len(steps) if steps else None,
        outcomes=[int(outcome.success) for outcome in ordered],
        motion=motion_of(ordered),
    )


def motion_of(results: Sequence[Outcome]) -> MotionFigures | None:
    """How the robot was made to move in all episodes; None where one of them was not counted."""
    counts = [outcome.motion for outcome in results if outcome.motion is not None]
    if len(counts) < len(results) or not counts:
        return None
    return figures(merged(counts))
