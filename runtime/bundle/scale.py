"""How one feature's numbers are scaled: statistics as typed data, and the two directions of the
arithmetic.

    quantiles, min_max   [low, high] <-> [-1, 1]: low is q01 or the minimum, high q99 or the maximum
    mean_std             low <-> 0, high beyond it <-> 1: low is the mean, high the standard
                         deviation
    none                 as it is

Pure; knows no file (`action_statistics`) and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.inputs_and_output import Statistics

MIN_SPREAD = 1e-8  # between the limits of a dimension; below, it does not move
GRIPPER_THRESHOLD = 0.5
LISTS: dict[Statistics, tuple[str, ...]] = {
    "quantiles": ("q01", "q99"),
    "min_max": ("min", "max"),
    "mean_std": ("mean", "std"),
    "none": (),
}
"""Which lists of a statistics file a mode reads, `low` first."""


class Scale(msgspec.Struct, frozen=True):
    """One feature's numbers, one entry a dimension; where `mask` is false the number is left as it
    is.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...] | None = None
    mode: Statistics = "quantiles"
    epsilon: float = 0.0
    """Added to the spread: high - low, or the standard deviation."""

    def __post_init__(self) -> None:
        lengths = {len(self.low), len(self.high), len(self.low if self.mask is None else self.mask)}
        if len(lengths) != 1:
            raise ValueError(
                f"expected equal lengths for low, high and mask, got {sorted(lengths)}"
            )


def normalise(values: NDArray[np.float64], scale: Scale) -> NDArray[np.float32]:
    """Robot's units float64[..., D] -> normalised float32[..., D]: the inverse of `unnormalise`.

    Dimensions without spread, whose values cannot be scaled, become 0.
    """
    if scale.mode == "none":
        return np.asarray(values, np.float32)
    low, high, mask = _arrays(scale)
    is_std = scale.mode == "mean_std"
    spread = (high if is_std else high - low) + scale.epsilon
    spread = np.where(spread > MIN_SPREAD, spread, np.inf)
    from_low = (values - low) / spread
    scaled = from_low if is_std else 2.0 * (values - low) / spread - (spread < np.inf)
    return np.where(mask, scaled, values).astype(np.float32)


def normalise_input(values: NDArray[np.float32], scale: Scale) -> NDArray[np.float32]:
    """The same for what a policy looks at, in float32 as the public code does it.

    `epsilon` alone keeps a dimension without spread finite: there the difference counts, and is
    large.
    """
    if scale.mode == "none":
        return np.asarray(values, np.float32)
    low, high, mask = (array.astype(np.float32) for array in _arrays(scale))
    epsilon = np.float32(scale.epsilon)
    if scale.mode == "mean_std":
        scaled = (values - low) / (high + epsilon)
    else:
        scaled = np.float32(2.0) * (values - low) / (high - low + epsilon) - np.float32(1.0)
    return np.where(mask.astype(bool), scaled, values).astype(np.float32)


def unnormalise(normalized: NDArray[np.float32], scale: Scale) -> NDArray[np.float64]:
    """Normalised float32[..., D] -> the robot's units float64[..., D], where masked.

    0.5 (a + 1) (high - low) + low, or a high + low.
    """
    if scale.mode == "none":
        return normalized.astype(np.float64)
    low, high, mask = _arrays(scale)
    if scale.mode == "mean_std":
        return np.where(mask, normalized * (high + scale.epsilon) + low, normalized)
    return np.where(mask, 0.5 * (normalized + 1) * (high - low + scale.epsilon) + low, normalized)


def binarise(
    sample: NDArray[np.float32], gripper: Sequence[int] = (6,), *, clip: bool = True
) -> NDArray[np.float32]:
    """Raw sample float32[..., D] -> clipped to [-1, 1], gripper dimensions 0 (close) below 0.5,
    else 1 (open).
    """
    clipped = np.clip(sample, -1.0, 1.0) if clip else sample.copy()
    columns = list(gripper)
    clipped[..., columns] = np.where(clipped[..., columns] < GRIPPER_THRESHOLD, 0.0, 1.0)
    return clipped


@lru_cache(maxsize=8)
def _arrays(scale: Scale) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """low, high and the mask, made once: between two inferences the caches are cold and every small
    array costs.
    """
    low = np.array(scale.low)
    high = np.array(scale.high)
    mask = np.ones(low.shape, bool) if scale.mask is None else np.array(scale.mask)
    return low, high, mask
