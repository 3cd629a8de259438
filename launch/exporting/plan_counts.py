"""How much of a policy is kept, in four numbers: the options that every verb with a plan shares.

What exactly is kept is the planner's to find out (`trimvla trim`); where weights are random, or
where only costs are wanted, the counts are all there is. Knows no policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class Kept(TypedDict):
    """The counts as the keyword arguments of whoever plans or costs by them."""

    layers: int | None
    mlp_keep: float
    cache_interval: int


@dataclass(frozen=True, kw_only=True)
class PlanCounts:
    """How much to keep of a policy; the defaults keep everything."""

    layers: int | None = None
    """Language layers to keep (default: all)."""

    mlp_keep: float = 1.0
    """Share of the MLP channels to keep in every kept layer."""

    tokens: int | None = None
    """Visual tokens to keep (default: all)."""

    cache_interval: int = 1
    """Run the head's blocks at every n-th DDIM step only."""

    @property
    def counted(self) -> bool:
        """Whether any of the four was given."""
        numbers = (self.layers, self.mlp_keep, self.tokens, self.cache_interval)
        return numbers != (None, 1.0, None, 1)

    @property
    def kept(self) -> Kept:
        """All but the tokens, which each verb makes its own plan of."""
        return Kept(layers=self.layers, mlp_keep=self.mlp_keep, cache_interval=self.cache_interval)

    @property
    def short_names(self) -> list[str]:
        """The counts, short enough for a file's name: L14, M0.75, T56, C5."""
        numbers = {
            "L": self.layers,
            "M": self.mlp_keep if self.mlp_keep != 1.0 else None,
            "T": self.tokens,
            "C": self.cache_interval if self.cache_interval != 1 else None,
        }
        return [f"{letter}{number:g}" for letter, number in numbers.items() if number is not None]
