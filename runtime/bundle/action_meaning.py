"""What the numbers of an action mean: the kind of each dimension and the rows a second; also their
names and units, where they have any.

Pure: two sides, compared.

A chunk names its meaning, a bundle's manifest and the control loop's configuration have one each,
and nothing is commanded while two of them differ: 0.01 m a row at 5 rows a second is another speed
at 10, and a target is no delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

from trimvla.runtime.bundle.manifest import ActionKind, ActionSpec

RATE_TOLERANCE = 1e-6  # relative: what two spellings of one rate may differ by


@dataclass(frozen=True)
class ActionMeaning:
    """The kinds of an action's dimensions, and its rows per second [Hz].

    `str` is for error messages.
    """

    kinds: tuple[ActionKind, ...]
    hz: float
    names: tuple[str, ...] = ()
    """Of the dimensions; empty where they are not named."""
    units: tuple[str, ...] = ()
    """Likewise."""

    def __str__(self) -> str:
        if not (self.names or self.units):
            return f"{describe(self.kinds)} at {self.hz:g} Hz"
        columns = zip_longest(self.names, self.units, self.kinds, fillvalue="")
        rows = [" ".join(word for word in row if word) for row in columns]
        return f"[{', '.join(rows)}] at {self.hz:g} Hz"


def meaning_of(action: ActionSpec) -> ActionMeaning:
    """What a bundle's actions mean."""
    return ActionMeaning(action.kinds, action.control_hz, action.names, action.units)


def describe(kinds: Sequence[ActionKind]) -> str:
    """Kinds for people, runs counted: `[6 delta, gripper]`."""
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return f"[{', '.join(kind if count == 1 else f'{count} {kind}' for kind, count in runs)}]"


def disagreement(expected: ActionMeaning, got: ActionMeaning) -> str:
    """Why rows of the one meaning must not be commanded as the other; empty if they may.

    A delta is a motion per row: its rate must be the control loop's. Targets and velocities mean
    the same at any rate.

    Args:
        expected: of the control loop.
        got: of a chunk or a bundle; without kinds where it does not name them.
    """
    if not got.kinds:
        return f"expected actions that name their kinds, {expected}, got none"
    same_rate = math.isclose(expected.hz, got.hz, rel_tol=RATE_TOLERANCE)
    if expected.kinds == got.kinds and (same_rate or "delta" not in expected.kinds):
        return ""
    return f"expected actions of {expected}, got {got}"
