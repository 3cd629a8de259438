"""Rotary angles as tables: rows are looked up, so that an exported graph computes neither sine nor
cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        return Angles(*(part.to(positions.device)[positions][None, None] for part in self.parts))

    def of_each(self, positions: Tensor) -> Angles:
        """Of a table, for int64[b, n]: float32[b, 1, n, d]."""
        return Angles(*(part.to(positions.device)[positions][:, None] for part in self.parts))

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
