"""Keys and values of some rows: what one transformer leaves for another to read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import split_heads
from trimvla.policies.nn.grouped import GroupedAttention
from trimvla.policies.nn.llama import rotate
from trimvla.policies.smolvla.angles import Angles


@dataclass(frozen=True)
class KeysValues:
    """Keys (rotated) and values, each float[b, kv heads, n, d]."""

    keys: Tensor
    values: Tensor

    def followed_by(self, other: KeysValues) -> KeysValues:
        """Both, along the positions."""
        keys = torch.cat([self.keys, other.keys], dim=2)
        return KeysValues(keys, torch.cat([self.values, other.values], dim=2))


class KeyValueProjection(nn.Module):
    """What attention needs of rows that only others look at."""

    def __init__(self, width: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.kv_heads = kv_heads
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)

    @classmethod
    def sharing(cls, attention: GroupedAttention) -> KeyValueProjection:
        """Of another module's weights."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.kv_heads = attention.kv_heads
        made.k_proj, made.v_proj = attention.k_proj, attention.v_proj
        return made

    def forward(self, x: Tensor, angles: Angles) -> KeysValues:
        """Of float[b, n, width]."""
        keys = rotate(split_heads(self.k_proj(x), self.kv_heads), angles.cos, angles.sin)
        return KeysValues(keys, split_heads(self.v_proj(x), self.kv_heads))
