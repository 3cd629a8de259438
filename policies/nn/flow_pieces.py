"""Pieces of a flow policy's action stage that every family has: rows that a step does not compute
anew, and x of every step in one tensor.

Parts of a chain (`policies.chained`). Knows no network and no plan.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Reuse(nn.Module):
    """New rows and the old sum."""

    def forward(self, tokens: Tensor, added: Tensor) -> Tensor:
        """float[1, H, width] each -> the same."""
        return tokens + added


class Collect(nn.Module):
    """x of every step in one tensor."""

    def forward(self, *xs: Tensor) -> Tensor:
        """float[1, H, A] each -> float[steps, H, A]."""
        return torch.cat(xs)
