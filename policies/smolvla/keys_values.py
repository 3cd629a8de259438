"""Keys and values of some rows: what one transformer leaves for another to read; and rotary angles.

Angles are tables whose rows are looked up, so that an exported graph computes neither sine nor
cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.nn.attention import split_heads
from trimvla.policies.nn.grouped import GroupedAttention
from trimvla.policies.nn.llama import rotate


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of some positions: float32[n, d] of a table, or float32[b, 1, n, d] of
    rows.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def table(cls, count: int, dim: int, base: float) -> Angles:
        """Of the positions 0 to count - 1, in memory even where weights are not: both halves hold
        the same angles.
        """
        exponents = (2.0 / dim) * torch.arange(dim // 2, device="cpu", dtype=torch.float32)
        radians = torch.arange(count, device="cpu").float()[:, None] / base**exponents
        both = torch.cat([radians, radians], dim=-1)
        return cls(both.cos(), both.sin())

    def at(self, positions: Tensor) -> Angles:
        """Of a table, for int64[n]: float32[1, 1, n, d]."""
        return Angles(*(row[None, None] for row in self._look_up(positions)))

    def of_each(self, positions: Tensor) -> Angles:
        """Of a table, for int64[b, n]: float32[b, 1, n, d]."""
        return Angles(*(row[:, None] for row in self._look_up(positions)))

    def _look_up(self, positions: Tensor) -> list[Tensor]:
        """Rows of both tables; as an embedding, which exports as one Gather."""
        return [F.embedding(positions, part.to(positions.device)) for part in self.parts]

    def rows(self, index: Tensor) -> Angles:
        """Of rows [b or 1, 1, n, d], those at int64[b, k]: float32[b, 1, k, d]."""
        wide = index[:, None, :, None].expand(-1, -1, -1, self.cos.shape[-1])
        return Angles(*(part.expand(len(index), -1, -1, -1).gather(2, wide) for part in self.parts))

    def followed_by(self, other: Angles) -> Angles:
        """Both, row behind row, for the larger batch of the two."""
        count = max(len(self.cos), len(other.cos))
        pairs = zip(self.parts, other.parts, strict=True)
        wide = ([part.expand(count, -1, -1, -1) for part in pair] for pair in pairs)
        return Angles(*(torch.cat(pair, dim=2) for pair in wide))

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.cos, self.sin


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
        made.k_proj = attention.k_proj
        made.v_proj = attention.v_proj
        return made

    def forward(self, x: Tensor, angles: Angles) -> KeysValues:
        """Of float[b, n, width]."""
        keys = rotate(split_heads(self.k_proj(x), self.kv_heads), angles.cos, angles.sin)
        return KeysValues(keys, split_heads(self.v_proj(x), self.kv_heads))
