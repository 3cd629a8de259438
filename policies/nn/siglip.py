"""SigLIP as Hugging Face stores it: patches with positions, pre-norm blocks, a norm at the end.

Module names are those of its checkpoints: projections of queries, keys and values apart, LayerNorms
by number. All patches of an image attend to each other; images are the batch. Knows no projector
and no language model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import Mlp, attention, merge_heads, split_heads
from trimvla.policies.nn.vision import PatchEmbed
from trimvla.policies.sizes.config import VitConfig


class SiglipAttention(nn.Module):
    """Bidirectional multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> the same."""
        q, k, v = (
            split_heads(part(x), self.heads) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(merge_heads(attention(q, k, v)))


class SiglipBlock(nn.Module):
    """One pre-norm block."""

    def __init__(self, cfg: VitConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.self_attn = SiglipAttention(cfg.width, cfg.heads)
        self.layer_norm2 = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.mlp = Mlp(cfg.width, cfg.mlp_hidden, cfg.activation)

    def forward(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


@dataclass(frozen=True)
class DroppedPatches:
    """Raster indices of the patches that go on behind the first `after` blocks, in the order in
    which they go on.
    """

    after: int
    kept: tuple[int, ...]


class Siglip(nn.Module):
    """The encoder: pixels to patch features, behind the final norm."""

    def __init__(
        self,
        patch_embedding: PatchEmbed,
        position_embedding: nn.Embedding,
        layers: Iterable[nn.Module],
        post_layernorm: nn.LayerNorm,
        *,
        positions: tuple[int, ...] | None = None,
        dropped: DroppedPatches | None = None,
    ) -> None:
        """Of these parts.

        Args:
            patch_embedding: pixels to patches.
            position_embedding: the table of positions.
            layers: the blocks.
            post_layernorm: the final norm.
            positions: the table's row of every patch; all rows in their order where it is none.
            dropped: patches that leave on the way.
        """
        super().__init__()
        self.patch_embedding = patch_embedding
        self.position_embedding = position_embedding
        self.layers = nn.ModuleList(layers)
        self.post_layernorm = post_layernorm
        self.positions = positions
        self.dropped = dropped

    @classmethod
    def of(cls, cfg: VitConfig, positions: tuple[int, ...] | None = None) -> Siglip:
        """Of these sizes, with torch's default weights."""
        return cls(
            PatchEmbed(cfg.patch_size, cfg.width),
            nn.Embedding(cfg.patches, cfg.width),
            [SiglipBlock(cfg) for _ in range(cfg.feature_block + 1)],
            nn.LayerNorm(cfg.width, eps=cfg.norm_eps),
            positions=positions,
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S], standardised -> float[b, P, width]: patches with their positions."""
        table = self.position_embedding.weight
        if self.positions is not None:
            table = table[torch.tensor(self.positions, device=table.device)]
        return self.patch_embedding(pixels) + table

    def forward(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S], standardised -> float[b, kept patches, width]."""
        x = self.embed(pixels)
        for index, layer in enumerate(self.layers):
            if self.dropped is not None and index == self.dropped.after:
                x = x[:, torch.tensor(self.dropped.kept, device=x.device)]
            x = layer(x)
        return self.post_layernorm(x)
