"""What a comparison of two computations found, as a result. Types alone."""

from __future__ import annotations

import msgspec


class Failure(msgspec.Struct, frozen=True):
    """One thing that did not agree."""

    group: str
    """What was compared."""
    key: str | None
    """Which array of it; none where it is all of them."""
    reason: str
    """What was expected, and what came."""


class GroupResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Arrays that were compared together."""

    compared: int
    """How many arrays."""
    worst: float
    """The largest difference: absolute, or of what `relative` and `ScaledComparison` make of it."""
    worst_key: str | None
    """The array in which it is."""
    mean: float
    """The largest mean absolute difference of an array."""
    cosine: float
    """The smallest cosine between two arrays."""
    tolerance: float
    """What `worst` may be."""
    typical: float | None = None
    """Median difference of all arrays; left out in full precision."""
    typical_tolerance: float | None = None
    """What `typical` may be; left out in full precision."""
    relative: bool = False
    """Whether differences are lengths over lengths of arrays; left out where not."""
    through: str | None = None
    """What computed our side; of references."""


class Parity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether two computations agree, group by group."""

    ok: bool
    """Whether all that was compared is within its tolerance."""
    compared: int
    """Arrays in all."""
    failed: list[Failure]
    """What is not."""
    absent: list[str]
    """Groups without any array."""
    groups: dict[str, GroupResult]
    """What was compared, by its name."""
    against: str | None = None
    """What a bundle was compared with."""
    runners: dict[str, dict[str, str]] | None = None
    """Stage -> what ran it."""
    scope: str | None = None
    """What was compared, in words, where that is not all of it."""
    bundle: str | None = None
    """The bundle's name."""
    weights: dict[str, object] | None = None
    """What identifies the weights of a streamed export."""

    def complaint(self, most: int = 3) -> str:
        """The first failures, in words; empty where all agrees."""
        return "; ".join(f"{failure.group}: {failure.reason}" for failure in self.failed[:most])
