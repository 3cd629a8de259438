"""What a point costs on this device: measured on a few bundles, worked out for the others.

The stages' times are added. Vision depends on the patches and the action head on its schedule
alone: of each the measured times are averaged. The language stage is a sum of its operations, its
layers and a constant, each with the device's own factor, fitted to what was measured. Knows
numbers; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimvla.launch.tuning.points import Point

Stages = Mapping[str, float]
"""Stage -> milliseconds."""


@dataclass(frozen=True)
class Measured:
    """One bundle's stages on this device."""

    point: Point
    milliseconds: Stages
    language_flops: float
    """Operations of the language stage."""


@dataclass(frozen=True)
class Prices:
    """Prices of points; `fit` makes it."""

    vision: Mapping[int, float]
    """Patches -> milliseconds."""
    action: Mapping[int, float]
    """Cache interval -> milliseconds."""
    language: tuple[float, float, float]
    """Milliseconds per operation, per layer, and in any case; none is negative."""

    def of(self, point: Point, language_flops: float) -> float:
        """Milliseconds of one action chunk: the three stages' graphs."""
        weights = np.array(self.language)
        language = float(weights @ _regressors(point, language_flops))
        return self.vision[point.patches] + self.action[point.cache_interval] + language


def fit(measured: Sequence[Measured]) -> Prices:
    """Prices that fit what was measured; every number of patches and every schedule must occur."""
    rows = np.array([_regressors(one.point, one.language_flops) for one in measured])
    times = np.array([one.milliseconds["language"] for one in measured])
    return Prices(
        vision=_means(measured, "vision", "patches"),
        action=_means(measured, "action", "cache_interval"),
        language=_not_negative(rows, times),
    )


def errors(measured: Sequence[Measured]) -> list[float]:
    """Relative error of each measured bundle's price where the others alone are fitted; of those
    whose patches and schedule the others have too.
    """
    found: list[float] = []
    for index, one in enumerate(measured):
        others = [*measured[:index], *measured[index + 1 :]]
        point = one.point
        known = any(other.point.patches == point.patches for other in others)
        known = known and any(
            other.point.cache_interval == point.cache_interval for other in others
        )
        if known and len(others) >= 3:
            real = sum(one.milliseconds.values())
            found.append(fit(others).of(point, one.language_flops) / real - 1.0)
    return found


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None for fewer than three, or where all of one are alike."""
    if len(one) < 3:
        return None
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (one, other)]
    if any(np.ptp(row) == 0 for row in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of equals the mean of their ranks."""
    less = (values[None] < values[:, None]).sum(1)
    same = (values[None] == values[:, None]).sum(1)
    return less + (same - 1) / 2.0


def _regressors(point: Point, flops: float) -> np.ndarray:
    return np.array([flops, float(point.layers), 1.0])


def _means(measured: Sequence[Measured], stage: str, amount: str) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for one in measured:
        found.setdefault(getattr(one.point, amount), []).append(one.milliseconds[stage])
    return {key: sum(times) / len(times) for key, times in found.items()}


def _not_negative(rows: np.ndarray, times: np.ndarray) -> tuple[float, float, float]:
    """Least squares in units of the times, so that a fast point counts as a slow one does; a
    factor that would be negative is left out.
    """
    scaled = rows / times[:, None]
    columns = list(range(rows.shape[1]))
    while columns:
        norm = np.linalg.norm(scaled[:, columns], axis=0)
        weights = np.linalg.lstsq(scaled[:, columns] / norm, np.ones(len(times)), rcond=None)[0]
        if (weights >= 0).all() or len(columns) == 1:
            found = np.zeros(rows.shape[1])
            found[columns] = np.maximum(weights / norm, 0.0)
            return float(found[0]), float(found[1]), float(found[2])
        columns.pop(int(weights.argmin()))
    return 0.0, 0.0, 0.0
