"""Which part of which dense weight a trimmed policy's weight is, by name; for weights that are read
one at a time.

What `trimmed.trim` does to modules that are in memory, done for names. Knows no values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from trimvla.runtime.bundle.plan import Plan, unmask

LAYER = re.compile(r"language\.layers\.(\d+)\.(.+)")
CHANNEL_AXES = {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1}


@dataclass(frozen=True)
class Part:
    """A dense weight's name, and the channels of it that are kept along `axis` (none: all of
    it).
    """

    name: str
    axis: int = 0
    channels: tuple[int, ...] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The part of the dense weight."""
        if self.channels is None:
            return weight
        return weight.index_select(self.axis, torch.tensor(self.channels, device=weight.device))


def part_of(name: str, plan: Plan) -> Part:
    """Where the weight `name` of a policy under the plan comes from."""
    found = LAYER.fullmatch(name)
    if found is None:
        return Part(name)
    index = int(found[1])
    rest = found[2]
    dense = index if plan.layers is None else plan.layers[index]
    source = f"language.layers.{dense}.{rest}"
    if plan.channels is None or rest not in CHANNEL_AXES:
        return Part(source)
    return Part(source, CHANNEL_AXES[rest], unmask(plan.channels[index]))
