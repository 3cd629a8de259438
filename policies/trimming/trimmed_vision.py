"""The vision tower under a plan: patches that leave behind the first encoder blocks.

The same places in every image and every encoder, so shapes are fixed and an encoder's later blocks
are really smaller. What stays keeps its position: it was added before. Knows no criterion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.nn.vision import VisionTower, Vit
from trimvla.policies.trimming.places import seen_places
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.vision_plan import PatchPlan


def seen_patches(plan: Plan, patches: int) -> tuple[int, ...] | None:
    """Raster indices of the patches that the encoders give, ascending; None: all of them."""
    seen = seen_places(plan, patches)
    return None if len(seen) == patches else seen


class TrimmedTower(VisionTower):
    """A vision tower whose encoders go on with some patches; every weight is the dense one's."""

    def __init__(self, dense: VisionTower, dropped: PatchPlan, seen: Sequence[int]) -> None:
        """Share the weights of `dense`; `seen` are raster indices, ascending."""
        nn.Module.__init__(self)
        self.encoders = dense.encoders
        self.projector = dense.projector
        self.visual_position = dense.visual_position
        self.after = dropped.after
        self.seen = tuple(seen)

    def features(self, image: Tensor) -> list[Tensor]:
        """uint8[b, S, S, 3] -> one float[b, K, width_i] per encoder."""
        return [self._encode(encoder, image) for encoder in self.encoders]

    def project(self, features: list[Tensor]) -> Tensor:
        """One float[b, K, width_i] per encoder -> float[b, K, D]."""
        visual = self.projector(torch.cat(features, dim=-1))
        if self.visual_position is None:
            return visual
        return visual + self.visual_position[:, self._index(visual)]

    def _encode(self, encoder: nn.Module, image: Tensor) -> Tensor:
        assert isinstance(encoder, Vit)
        x = encoder.enter(encoder.normalise(image))
        for block in encoder.blocks[: self.after]:
            x = block(x)
        prefix = encoder.prefix
        stay = self._index(x) + prefix
        if prefix:
            stay = torch.cat([torch.arange(prefix, device=x.device), stay])
        x = x[:, stay]
        for block in encoder.blocks[self.after :]:
            x = block(x)
        return x[:, prefix:]

    def _index(self, like: Tensor) -> Tensor:
        return torch.tensor(self.seen, device=like.device)
