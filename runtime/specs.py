"""Specifications of arrays and their check. Knows dtypes and shapes; not what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.errors import SpecError

MAX_PIXELS = 4096 * 4096
"""Of any image that is accepted."""
Axis = int | str | None
"""A length; a name (any length, the same wherever the name stands in one shape); or None (any
length).
"""


def describe(dtype: object, shape: tuple[Axis, ...]) -> str:
    """`float32[16, 7]`; a free axis is `?`."""
    return f"{dtype}[{', '.join('?' if axis is None else str(axis) for axis in shape)}]"


@dataclass(frozen=True)
class ArraySpec:
    """An array's name, dtype and shape, as an executable comment."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    def __str__(self) -> str:
        return describe(self.dtype, self.shape)

    def validate(self, value: object) -> NDArray[Any]:
        """Return `value` unchanged if it fits, else raise SpecError with the name, what was
        expected and what came.
        """
        if not isinstance(value, np.ndarray):
            raise SpecError(f"expected {self} for '{self.name}', got {type(value).__name__}")
        if value.dtype != np.dtype(self.dtype) or not self._fits(value.shape):
            raise SpecError(
                f"expected {self} for '{self.name}', got {describe(value.dtype, value.shape)}"
            )
        return value

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) != len(self.shape):
            return False
        named: dict[str, int] = {}
        return all(
            axis is None
            or length == (named.setdefault(axis, length) if isinstance(axis, str) else axis)
            for axis, length in zip(self.shape, shape, strict=True)
        )
