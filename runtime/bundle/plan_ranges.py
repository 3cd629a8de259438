"""Checks that all parts of a plan share: a number in its range, rising indices.

Errors name the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from trimvla.runtime.errors import ConfigError

MAX_INDEX = 4096  # of a layer or a sampler step
MAX_TOKENS = 1 << 20


def check_range(name: str, value: float, least: float, most: float) -> None:
    """ConfigError where the value is not in the range; NaN is in none."""
    if not least <= value <= most:
        raise ConfigError(f"expected {least:g} to {most:g} for '{name}', got {value}")


def check_rising(name: str, indices: Sequence[int]) -> None:
    """ConfigError unless there are indices, none twice, in order, and not absurdly many or
    large.
    """
    if len(indices) > MAX_INDEX or any(index > MAX_INDEX for index in indices):
        got = f"{len(indices)} up to {max(indices)}"
        raise ConfigError(
            f"expected at most {MAX_INDEX} indices up to {MAX_INDEX} for '{name}', got {got}"
        )
    if not indices or indices[0] < 0 or any(a >= b for a, b in pairwise(indices)):
        raise ConfigError(f"expected rising indices from 0 on for '{name}', got {list(indices)}")
