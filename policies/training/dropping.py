"""Which patches and visual tokens a training step does without: evenly spread ones, or whole
regions.

Knows rasters of patches and the vision tower; knows no batch and no loss.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from trimvla.policies.nn.vision import VisionTower, Vit

CLOUD = 5  # supports per side of the random field that decides which regions stay


def patch_dropout(tower: VisionTower, image: Tensor, seen: Tensor, patches: int) -> Tensor:
    """float[b, P, D] of a tower that sees only patches int64[n] `seen`; the other rows
    are zero.
    """
    features = []
    for encoder in tower.encoders:
        assert isinstance(encoder, Vit) and not encoder.prefix
        x = encoder.embed(encoder.normalise(image))[:, seen]
        for block in encoder.blocks:
            x = block(x)
        features.append(x)
    visual = tower.projector(torch.cat(features, dim=-1))
    if tower.visual_position is not None:
        visual = visual + tower.visual_position[:, seen]
    whole = visual.new_zeros(len(visual), patches, visual.shape[2])
    return whole.index_copy(1, seen, visual)


def spread_tokens(patches: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Raster indices int64[count], ascending: a random choice that takes equally many from every 2
    x 2 block.
    """
    return spread(block_order(patches, rng), count)


def block_order(patches: int, rng: np.random.Generator) -> np.ndarray:
    """Raster indices int64[P / 4, 4]: one row per 2 x 2 block, its patches in random order."""
    side = math.isqrt(patches)
    blocks = (
        np.arange(patches).reshape(side // 2, 2, side // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    )
    return rng.permuted(blocks, axis=1)


def spread(order: np.ndarray, count: int) -> np.ndarray:
    """The first ones of every block, int64[count], ascending; fewer are always among more."""
    return np.sort(order[:, : count // len(order)].ravel())


def blob_dropout(
    patches: int, places: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Which of the tokens at raster `places` stay, int64[count], ascending: where a smooth random
    field is high.
    """
    side = math.isqrt(patches)
    corners = torch.from_numpy(rng.standard_normal((1, 1, CLOUD, CLOUD)))
    field = (
        nn.functional.interpolate(corners, size=(side, side), mode="bilinear", align_corners=True)
        .numpy()
        .ravel()
    )
    score = field[places] + rng.uniform(0.1, 2.0) * rng.standard_normal(len(places))
    return np.sort(np.argsort(-score)[:count])
