"""Transformer layers whose heads share keys and values in groups: the decoders and action experts
of flow policies.

Queries of one group are rows of one product with its keys, so nothing is repeated. Masks are bool
and positions come in as angles. Knows no tokens, no order of them and no checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import activate, attention, merge_heads, softmax, split_heads
from trimvla.policies.nn.llama import rotate
from trimvla.policies.sizes.config import Activation


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, where head h reads group h // (heads / groups).

    Args:
        q: float[b, heads, queries, d].
        k: float[b, groups, keys, d].
        v: float[b, groups, keys, d].
        mask: bool, broadcast to [b, queries, keys]; True where the query may look.

    Returns:
        float[b, heads, queries, d].
    """
    if q.shape[1] == k.shape[1]:
        return attention(q, k, v, None if mask is None else mask.unsqueeze(-3))
    return (grouped_probabilities(q, k, mask).to(v.dtype).flatten(2, 3) @ v).reshape(q.shape)


def grouped_probabilities(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the queries look at, as for `grouped_attention`: float32[b, groups, heads / groups,
    queries, keys].
    """
    groups = k.shape[1]
    share = q.shape[1] // k.shape[1]
    rows = (q * q.shape[-1] ** -0.5).reshape(len(q), groups, share * q.shape[2], q.shape[3])
    scores = (rows @ k.transpose(-2, -1)).unflatten(2, (share, q.shape[2]))
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3).unsqueeze(-3), -torch.inf)
    return softmax(scores)


class GroupedAttention(nn.Module):
    """Projections of attention with fewer key-value heads than heads; its user decides what
    attends to what.

    `width_in` is what keys and values are made from, where that is another stream than the
    queries'.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, width_in: int | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        source = width if width_in is None else width_in
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(source, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(source, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, heads, n, d], rotated by angles [..., n, d]."""
        return rotate(split_heads(self.q_proj(x), self.heads), cos, sin)

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """float[b, n, width_in] -> float[b, kv, n, d], rotated by angles [..., n, d]."""
        return rotate(split_heads(self.k_proj(x), self.kv_heads), cos, sin)

    def values(self, x: Tensor) -> Tensor:
        """float[b, n, width_in] -> float[b, kv, n, d]."""
        return split_heads(self.v_proj(x), self.kv_heads)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention and the output projection: float[b, heads, n, d] -> float[b, n, width]."""
        return self.o_proj(merge_heads(grouped_attention(q, k, v, mask)))


class GatedMlp(nn.Module):
    """down(activation(gate x) * up x)."""

    def __init__(self, width: int, hidden: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., width] -> the same."""
        return self.down_proj(self.channels(x))

    def channels(self, x: Tensor) -> Tensor:
        """What goes into down: float[..., width] -> float[..., hidden]."""
        return activate(self.gate_proj(x), self.activation) * self.up_proj(x)
