"""How far two arrays are apart, collected over many: the rows of every verification report.

Knows arrays and tolerances; not what they mean nor where they come from.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch

from trimvla.export.parity import Failure, GroupResult, Parity

Value = torch.Tensor | np.ndarray


@dataclass
class Comparison:
    """What came of one group of arrays; `worst` is the largest absolute difference, at
    `worst_key`.
    """

    group: str
    tolerance: float
    compared: int = 0
    worst: float = 0.0
    worst_key: str | None = None
    mean: float = 0.0
    cosine: float = 1.0
    failed: list[Failure] = field(default_factory=list)

    def add(self, key: str, expected: Value, got: Value) -> None:
        """Compare one array."""
        self.compared += 1
        a = as_float64(expected)
        b = as_float64(got)
        if a.shape != b.shape:
            self.fail(key, f"expected shape {list(a.shape)}, got {list(b.shape)}")
            return
        worst = self.difference(a, b)
        if self.worst_key is None or worst > self.worst:
            self.worst = worst
            self.worst_key = key
        self.mean = max(self.mean, _finite(float(np.abs(a - b).mean())) if a.size else 0.0)
        self.cosine = min(self.cosine, cosine(a, b))
        if worst > self.tolerance:
            self.fail(key, f"expected a difference of at most {self.tolerance:g}, got {worst:g}")

    def difference(self, a: np.ndarray, b: np.ndarray) -> float:
        """What is judged."""
        return max_abs_difference(a, b)

    def fail(self, key: str | None, reason: str) -> None:
        """Note a failure."""
        self.failed.append(Failure(self.group, key, reason))

    def finish(self) -> None:
        """All arrays are in."""

    def summary(self) -> GroupResult:
        """Worst, largest mean and smallest cosine of all compared arrays."""
        return GroupResult(
            compared=self.compared,
            worst=self.worst,
            worst_key=self.worst_key,
            mean=self.mean,
            cosine=self.cosine,
            tolerance=self.tolerance,
        )


class ScaledComparison(Comparison):
    """The same where arrays may be large: a difference counts in root mean squares of the array,
    where that is above 1.

    Rounding grows with the numbers: visual tokens of some policies are beyond 10 in the mean and
    reach 90, where one step of float32 is 8e-6 and a sum of hundreds of such numbers is not the
    same to 1e-4 in another order.
    """

    def difference(self, a: np.ndarray, b: np.ndarray) -> float:
        """The largest absolute difference over what the array is in the mean, or over 1."""
        typical = float(np.sqrt(np.square(a).mean())) if a.size else 0.0
        return max_abs_difference(a, b) / (typical if 1 < typical < math.inf else 1.0)


@dataclass(frozen=True)
class Limit:
    """How far a boundary in a lower precision may be from float32: lengths of differences over
    lengths of arrays.

    `worst` is for every array, `typical` for the median over all of them.
    """

    worst: float
    typical: float


@dataclass
class LowerComparison(Comparison):
    """The same where one side computes in a lower precision: differences are relative (`Limit`).

    `tolerance` is `Limit.worst`.
    """

    typical_tolerance: float = 0.0
    differences: list[float] = field(default_factory=list)

    @classmethod
    def within(cls, group: str, limit: Limit) -> LowerComparison:
        """Judged by a limit."""
        return cls(group, limit.worst, typical_tolerance=limit.typical)

    def difference(self, a: np.ndarray, b: np.ndarray) -> float:
        """Length of the difference over the length of the first."""
        self.differences.append(relative_difference(a, b))
        return self.differences[-1]

    def finish(self) -> None:
        """Judge all arrays together."""
        if self.differences and self.typical > self.typical_tolerance:
            allowed = f"{self.typical_tolerance:g} for the median of all differences"
            self.fail(None, f"expected at most {allowed}, got {self.typical:.3g}")

    @property
    def typical(self) -> float:
        """The median difference."""
        return statistics.median(self.differences)

    def summary(self) -> GroupResult:
        """The same; differences are relative."""
        return msgspec.structs.replace(
            super().summary(),
            typical=self.typical,
            typical_tolerance=self.typical_tolerance,
            relative=True,
        )


def report(comparisons: Mapping[str, Comparison]) -> Parity:
    """All groups together; `absent` are groups without any array."""
    for comparison in comparisons.values():
        comparison.finish()
    failed = [failure for comparison in comparisons.values() for failure in comparison.failed]
    present = {name: one for name, one in comparisons.items() if one.compared}
    return Parity(
        ok=not failed,
        compared=sum(comparison.compared for comparison in present.values()),
        failed=failed,
        absent=[name for name in comparisons if name not in present],
        groups={name: comparison.summary() for name, comparison in present.items()},
    )


def as_float64(value: Value) -> np.ndarray:
    """Any array or tensor as float64."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array.astype(np.float64)


def max_abs_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference; the largest float where a number is not finite."""
    return _finite(float(np.abs(a - b).max(initial=0.0)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine between two arrays as vectors; 1 between zeros, -1 where it is undefined."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0.0:
        return 1.0 if not a.any() and not b.any() else -1.0
    value = float((a * b).sum()) / lengths
    return value if math.isfinite(value) else -1.0


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the difference over the length of the first; the largest float where a number is
    not finite.
    """
    return _finite(float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), sys.float_info.min)))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else sys.float_info.max
