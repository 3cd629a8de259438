"""The last gate before the wire: finite, in range, no jump. Pure functions; knows numbers, not robots or time.

An action that is not even numbers of the right count is refused: the caller holds. One that goes beyond a limit is
brought back to it, and the verdict says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Per dimension, in the action's own units."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    max_change: tuple[float, ...] | None = None
    """Against the command before; infinite, or None for all: any change."""

    def __post_init__(self) -> None:
        changes = self.max_change if self.max_change is not None else (math.inf,) * len(self.low)
        lengths = [len(self.low), len(self.high), len(changes)]
        if len(set(lengths)) != 1:
            raise ConfigError(f"expected one length for 'low', 'high' and 'max_change', got {lengths}")
        if not np.isfinite([self.low, self.high]).all() or np.any(np.greater(self.low, self.high)):
            raise ConfigError(f"expected finite 'low' <= 'high', got {self.low} and {self.high}")
        if not all(change > 0 for change in changes):
            raise ConfigError(f"expected numbers above 0 for 'max_change', got {self.max_change}")


@dataclass(frozen=True)
class Verdict:
    """What the gate lets through. `action` float64[D] within the limits, or None; `reasons` is empty if unchanged."""

    action: NDArray[np.float64] | None
    reasons: tuple[str, ...] = ()


def check(action: ArrayLike, limits: Limits, previous: ArrayLike | None = None) -> Verdict:
    """Judge one action.

    Args:
        action: float[D], what the policy wants.
        limits: for D dimensions.
        previous: float[D], the command before, or where the robot is; none to skip the check of changes.
            One that is not finite or not of D numbers is refused like an action.

    Returns:
        A verdict whose action, if there is one, is finite, within range and within `max_change` of `previous`;
        where a `previous` out of range leaves no room for both, the range wins.
    """
    wanted = np.asarray(action, np.float64)
    before = wanted if previous is None else np.asarray(previous, np.float64)
    problems = (*_problems("action", wanted, limits), *_problems("previous command", before, limits))
    if problems:
        return Verdict(None, problems)
    ranged = np.clip(wanted, limits.low, limits.high)
    reasons = _changed("out of range", wanted, ranged)
    if previous is None or limits.max_change is None:
        return Verdict(ranged, reasons)
    change = np.asarray(limits.max_change)
    stepped = np.clip(np.clip(ranged, before - change, before + change), limits.low, limits.high)
    return Verdict(stepped, reasons + _changed("too sudden", ranged, stepped))


def _problems(name: str, value: NDArray[np.float64], limits: Limits) -> tuple[str, ...]:
    """Why `value` cannot be judged, if it cannot."""
    if value.shape != (len(limits.low),):
        return (f"{name}: expected {len(limits.low)} numbers, got shape {list(value.shape)}",)
    if not np.isfinite(value).all():
        return (f"{name}: not finite in dimension {_where(~np.isfinite(value))}",)
    return ()


def _changed(what: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[str, ...]:
    changed = before != after
    return (f"{what} in dimension {_where(changed)}",) if changed.any() else ()


def _where(mask: NDArray[np.bool_]) -> str:
    return ", ".join(map(str, np.flatnonzero(mask)))
