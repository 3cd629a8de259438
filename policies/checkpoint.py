"""A checkpoint of any family, opened: its config, weights that are read when asked for, statistics,
tokenizer.

What `Family.open_checkpoint` gives. Knows no family and no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FeatureStatistics = Mapping[str, Mapping[str, np.ndarray]]
"""Feature ("action", "state") -> statistic ("mean", "std", "min", "max", "q01", "q99", "mask") ->
one number a dimension.
"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint, opened and checked against its config."""

    cfg: Any
    """The family's config, with `fingerprint` and `to_dict`."""
    weights: Mapping[str, Tensor]
    """By our names and in our shapes; each is read when it is asked for, in the precision of the
    file.
    """
    statistics: FeatureStatistics
    """Of the chosen data set."""
    statistics_key: str
    """The data set's name; "default" where the checkpoint has a single one without a name."""
    tokenizer: Path | None
    """`tokenizer.json`; None where the checkpoint has none (`Family.tokenizer_hint` names where
    users have it).
    """
    cameras: tuple[str, ...] = ()
    """Names in order; of length 1 and any name where the family looks through one camera."""
    state_names: tuple[str, ...] = ()
    """Of the state's numbers, where the checkpoint names them."""
    directory: Path
    statistics_file: str = "statistics"
    """Where they were read, for error messages."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the family needs to describe it."""

    @property
    def table(self) -> dict[str, Any]:
        """The statistics as a bundle's `statistics.json` has them: {key: {feature: {name:
        list}}}.
        """
        features = {
            feature: {name: array.tolist() for name, array in arrays.items()}
            for feature, arrays in self.statistics.items()
        }
        return {self.statistics_key: features}
