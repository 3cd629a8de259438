"""What a robot's driver takes and gives, number by number: names, units, kinds, limits and rate.

Compared with a bundle's actions and with the control loop before anything moves: a swapped order,
degrees for radians or a joint too few are found as words, not as a motion. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec

from trimvla.runtime.bundle.action_meaning import RATE_TOLERANCE, ActionMeaning
from trimvla.runtime.bundle.inputs_and_output import ActionKind, StateSpec

Name = Annotated[str, msgspec.Meta(max_length=128)]
MOST = 64  # numbers of a command, as in a message


class Quantity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number that a robot gives of itself.

    Example:
        >>> from trimvla.runtime import Quantity
        >>> Quantity("elbow_flex.pos", "deg").unit
        'deg'
    """

    name: Name = ""
    """Empty: not named, and not compared."""
    unit: Name = ""
    """Such as `rad`, `deg`, `m` or `percent`, spelled as in the bundle; empty: not compared."""


class Dimension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number of a command.

    Example:
        >>> from trimvla.runtime import Dimension
        >>> Dimension("elbow_flex.pos", "deg", "absolute", -100.0, 100.0, speed=30.0).speed
        30.0
    """

    name: Name = ""
    """Empty: not named, and not compared."""
    unit: Name = ""
    """As `Quantity.unit`."""
    kind: ActionKind = "absolute"
    """What it means to the robot."""
    low: float = -math.inf
    high: float = math.inf
    """What the robot can take, in its unit. The limits of control must lie within."""
    speed: float = math.inf
    """The fastest that the driver moves by itself, to its safe pose [unit/s]."""

    def __post_init__(self) -> None:
        if not (self.low <= self.high and self.speed > 0):
            numbers = f"{self.low}, {self.high} and {self.speed}"
            raise ValueError(f"expected 'low' <= 'high' and 'speed' above 0, got {numbers}")


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a robot takes as a command and gives as its state.

    Example:
        >>> from trimvla.runtime import Description, Dimension, Quantity
        >>> lift = Dimension("lift", "m", "absolute", 0.0, 0.5, speed=0.1)
        >>> grip = Dimension("gripper", "", "gripper", 0.0, 1.0, speed=1.0)
        >>> Description((lift, grip), (Quantity("lift", "m"),), hz=10.0).kinds
        ('absolute', 'gripper')
    """

    commands: Annotated[tuple[Dimension, ...], msgspec.Meta(min_length=1, max_length=MOST)]
    """In the order of a command's numbers."""
    state: Annotated[tuple[Quantity, ...], msgspec.Meta(max_length=MOST)] = ()
    """In the order of `JointState.position`; empty: not described."""
    hz: float | None = None
    """Commands a second that it is made for, which control must send; None: any."""

    def __post_init__(self) -> None:
        for what, parts in (("commands", self.commands), ("state", self.state)):
            names = [part.name for part in parts if part.name]
            if names and (len(names) != len(parts) or len(set(names)) != len(names)):
                given = [part.name for part in parts]
                raise ValueError(f"expected a name of its own for each of '{what}', got {given}")
        if self.hz is not None and not 0 < self.hz < math.inf:
            raise ValueError(f"expected a rate above 0 for 'hz', or none, got {self.hz}")

    @property
    def kinds(self) -> tuple[ActionKind, ...]:
        """Of the commands' numbers."""
        return tuple(part.kind for part in self.commands)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the commands' numbers; empty where they are not named."""
        return tuple(part.name for part in self.commands if part.name)

    @property
    def units(self) -> tuple[str, ...]:
        """Of the commands' numbers; empty where none is named."""
        units = tuple(part.unit for part in self.commands)
        return units if any(units) else ()

    @property
    def state_names(self) -> tuple[str, ...]:
        """Of the positions; empty where they are not named."""
        return tuple(part.name for part in self.state if part.name)

    def meaning(self, hz: float) -> ActionMeaning:
        """What its commands mean, at its own rate or, where any will do, at `hz`."""
        return ActionMeaning(self.kinds, self.hz or hz, self.names, self.units)


def unlike_bundle(robot: Description, got: ActionMeaning) -> str:
    """Why a bundle's actions must not be sent to this robot; empty if they may.

    Names and units are compared where both sides give them; a rate for deltas, which are a motion
    a row.

    Args:
        robot: as its driver describes it.
        got: of a bundle or a chunk.
    """
    expected = robot.meaning(got.hz)
    found = [
        *_kinds(expected.kinds, got.kinds),
        *_names(expected.names, got.names),
        *_units(expected, got),
        *(_rates(robot.hz, got.hz) if "delta" in robot.kinds else []),
    ]
    return _words(expected, got, found)


def unlike_control(
    robot: Description, got: ActionMeaning, low: Sequence[float], high: Sequence[float]
) -> str:
    """Why the control loop must not command this robot; empty if it may.

    Args:
        robot: as its driver describes it.
        got: kinds and rate of the control loop.
        low: of its limits, one number a dimension.
        high: likewise.
    """
    expected = robot.meaning(got.hz)
    found = [*_kinds(expected.kinds, got.kinds), *_rates(robot.hz, got.hz)]
    if not found:
        found = [
            f"the limits {low[i]:g} to {high[i]:g} of control lie outside {part.low:g} to"
            f" {part.high:g} in dimension {_label(i, part.name)}"
            for i, part in enumerate(robot.commands)
            if low[i] < part.low or high[i] > part.high
        ]
    return _words(expected, got, found)


def unlike_state(robot: Description, spec: StateSpec | None) -> str:
    """Why a policy must not read this robot's state: another unit; empty if it may.

    Names and their number are compared elsewhere (`preprocess.state`).
    """
    if spec is None or not spec.units or not any(part.unit for part in robot.state):
        return ""
    given = tuple(part.unit for part in robot.state)
    both = list(zip(spec.units, given, strict=False))
    if all(want == have or not (want and have) for want, have in both):
        return ""
    return f"expected a state in {list(spec.units)}, got {list(given)}"


def _words(expected: ActionMeaning, got: ActionMeaning, found: Sequence[str]) -> str:
    """Both tables and what differs."""
    if not found:
        return ""
    return f"the robot takes {expected}, expected the same, got {got}: {'; '.join(found)}"


def _kinds(expected: Sequence[ActionKind], got: Sequence[ActionKind]) -> list[str]:
    if len(expected) != len(got):
        return [f"{len(got)} numbers instead of {len(expected)}"]
    return [
        f"{have} instead of {want} in dimension {i}"
        for i, (want, have) in enumerate(zip(expected, got, strict=True))
        if want != have
    ]


def _names(expected: Sequence[str], got: Sequence[str]) -> list[str]:
    if not expected or not got or tuple(expected) == tuple(got):
        return []
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    parts = [f"{missing} missing"] if missing else []
    parts += [f"{unknown} unknown"] if unknown else []
    return ["; ".join(parts) or "the same names in another order"]


def _units(expected: ActionMeaning, got: ActionMeaning) -> list[str]:
    both = zip(expected.units, got.units, strict=False)
    return [
        f"{have} instead of {want} in dimension {_label(i, (*expected.names, '')[i:][0])}"
        for i, (want, have) in enumerate(both)
        if want and have and want != have
    ]


def _rates(expected: float | None, got: float) -> list[str]:
    if expected is None or math.isclose(expected, got, rel_tol=RATE_TOLERANCE):
        return []
    return [f"{got:g} Hz instead of {expected:g} Hz"]


def _label(index: int, name: str) -> str:
    return f"{index} ({name})" if name else str(index)
