"""The result of `trimvla faults`. Knows types alone."""

from __future__ import annotations

from trimvla.launch.faults.play import Outcome
from trimvla.launch.result import VerbResult


class FaultsResult(VerbResult, frozen=True, kw_only=True):
    """All rows that were played, and what was judged between them."""

    bound_ms: float
    """Within this time after a fault the robot must hold [ms]."""
    seconds: float
    """Of the whole run [s]."""
    commands: int
    """Commands that were judged."""
    violations_between_rows: int
    """Commands that must not have been sent while no fault was played."""
    between_rows: list[str]
    """These, in words."""
    rows: list[Outcome]
    """One a fault."""
