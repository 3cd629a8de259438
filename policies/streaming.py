"""What a family gives so that its policies are exported without ever being held: their shapes, and
a thin slice of them that can be.

A part of its row in the table of families. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimvla.runtime.bundle.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from trimvla.policies.checkpoint import Checkpoint


@dataclass(frozen=True)
class Slice:
    """A policy of few layers at its true widths, and where its weights are in the whole one."""

    cfg: Any
    plan: Plan
    moved: Mapping[str, str]
    """Beginning of a weight's name in the slice -> in the whole policy, where they differ."""
    what: str
    """In words, for the report."""

    def whole_name(self, name: str) -> str:
        """The whole policy's name of a weight of the slice."""
        for ours, theirs in self.moved.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """The parts of a row that a streamed export calls."""

    build_meta: Callable[[Any], nn.Module]
    """cfg -> the dense policy on the meta device: names and shapes, no values."""
    computes: re.Pattern[str]
    """Matches the names of weights that a stage computes constants from where it is built: these
    alone must have values then, in float32."""
    slice_of: Callable[[Any, Plan], Slice]
    """(cfg, plan) -> the slice that stands for the policy in its proof."""
    placeholder: Callable[[Any, str], Checkpoint]
    """(cfg, statistics key) -> a checkpoint without weights and tokenizer, whose statistics leave
    numbers as they are: what random weights are described with."""
