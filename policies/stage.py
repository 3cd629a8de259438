"""One exported graph of a policy: its module, its border, and how close a backend must come to
torch.

Families list their stages as rows of this type. Knows no family, no file format and no backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

PROMPT_AXIS = "prompt"
"""The symbolic axis of a stage's shapes; it takes the lengths of the prompt buckets only."""
SAMPLED_TOLERANCE = 1e-3
"""Of sampled actions. Noise that lies between two modes goes to either: there the sampler
multiplies a rounding error (by 72 in one of twelve random samples of the shipped policy, else by
about 0.5), and backends round differently.
"""


@dataclass(frozen=True)
class Stage:
    """One graph. `tolerance` is the largest difference from torch, in float32, on the same inputs
    (`compare.ScaledComparison`); outputs of integers must be equal."""

    name: str
    module: Callable[[Any], nn.Module]
    """The family's policy, dense or trimmed -> what is traced."""
    inputs: tuple[str, ...]
    """Names of its tensors, in the order of `forward`'s parameters; `Family.tensor_specs` has their
    shapes.
    """
    outputs: tuple[str, ...]
    tolerance: float
    weights_of: str | None = None
    """The stage in whose file this one's weights are, where it has the same."""
