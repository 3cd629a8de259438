"""Images of all cameras to visual tokens in the decoder's width: SigLIP, pixel shuffle, one linear
map.

Patches of one visual token are neighbours: they are dropped together or not at all. Positions come
from the table of the size that the encoder was made for, whatever the image's size: each patch
takes the row of the place that it covers. Knows no camera by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.nn.siglip import Siglip
from trimvla.policies.smolvla.config import PatchPositions, SmolVlaConfig


class Vision(nn.Module):
    """The encoder and what leads from its features to the decoder."""

    def __init__(self, encoder: Siglip, connector: nn.Linear, shuffle: int) -> None:
        """Of these parts; `shuffle` patches a side become one token."""
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.shuffle = shuffle

    @classmethod
    def of(cls, cfg: SmolVlaConfig) -> Vision:
        """Of these sizes, with torch's default weights."""
        grid = cfg.image_size // cfg.vision.patch_size
        encoder = Siglip.of(cfg.vision, table_rows(grid, cfg))
        joined = cfg.vision.width * cfg.shuffle**2
        return cls(encoder, nn.Linear(joined, cfg.text.width, bias=False), cfg.shuffle)

    def pixels(self, images: Tensor) -> Tensor:
        """RGB float32[C, S, S, 3] from 0 to 1 -> float32[C, 3, S, S] from -1 to 1."""
        return (images * 2.0 - 1.0).permute(0, 3, 1, 2)

    def project(self, features: Tensor) -> Tensor:
        """float[C, P, width] -> float[C, T, D], before the decoder's factor."""
        side = self.shuffle
        if self.encoder.dropped is not None:  # patches already lie token by token
            return self.connector(features.reshape(len(features), -1, side**2 * features.shape[2]))
        grid = round(features.shape[1] ** 0.5) // side
        x = features.unflatten(1, (grid, side, grid, side)).transpose(2, 3)
        return self.connector(x.flatten(3).flatten(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """RGB float32[C, S, S, 3] from 0 to 1 -> float[C * T, D]."""
        return self.project(self.encoder(self.pixels(images))).flatten(0, 1)


def table_rows(grid: int, cfg: SmolVlaConfig) -> tuple[int, ...] | None:
    """The table's row for every patch of `grid` a side, in raster order; None where that is every
    row in order.
    """
    table = cfg.vision.image_size // cfg.vision.patch_size
    axis = [_bucket(index, grid, table, cfg.patch_positions) for index in range(grid)]
    rows = tuple(row * table + column for row in axis for column in axis)
    return None if rows == tuple(range(table**2)) else rows


def _bucket(index: int, grid: int, table: int, positions: PatchPositions) -> int:
    """Where the patch begins, in rows of the table; `shifted`: a rounding error before that."""
    if positions == "identity":
        return index * table // grid
    return max(0, -(-index * table // grid) - 1)


def patches_of(tokens: Sequence[int], grid: int, shuffle: int) -> tuple[int, ...]:
    """Raster indices of the patches of these visual tokens, token by token, for `grid` patches a
    side.
    """
    across = grid // shuffle
    return tuple(
        (token // across * shuffle + row) * grid + token % across * shuffle + column
        for token in tokens
        for row in range(shuffle)
        for column in range(shuffle)
    )


def take(x: Tensor, rows: Tensor) -> Tensor:
    """float[b, n, w] at int64[b, k] -> float[b, k, w]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def constant(indices: Sequence[int], like: Tensor) -> Tensor:
    """int64[n] where `like` is."""
    return torch.tensor(indices, device=like.device)
