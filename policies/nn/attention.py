"""The pieces that every transformer here shares: attention, fused-qkv self-attention, the two-layer
MLP.

`attention` is the one place where scores are computed. Plain matrix products are the fastest form
on a CPU, in training and in the exported graphs; on a GPU it is torch's fused kernel. Knows no
positions and no masks of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.sizes.config import Activation


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    Args:
        q: float[b, heads, queries, d].
        k: float[b, kv_heads, keys, d]; heads is a multiple of kv_heads.
        v: float[b, kv_heads, keys, d].
        mask: bool, broadcast to [b, heads, queries, keys]; True where the query may look.

    Returns:
        float[b, heads, queries, d].
    """
    k = shared_heads(k, q.shape[1])
    v = shared_heads(v, q.shape[1])
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return softmax(scores).to(v.dtype) @ v


def shared_heads(x: Tensor, heads: int) -> Tensor:
    """Keys or values float[b, kv_heads, n, d] -> float[b, heads, n, d]: each serves as many queries
    in a row.
    """
    if x.shape[1] == heads:
        return x
    return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


def softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32 whatever the scores are: float[..., n] -> float32[..., n]."""
    return scores.float().softmax(dim=-1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, n, heads * d] -> [b, heads, n, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[b, heads, n, d] -> [b, n, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply one of the named activations."""
    if activation == "silu":
        return F.silu(x)
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention with one fused qkv projection (timm's layout)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, n, width]."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(attention(q, k, v)))


class Mlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., width] -> float[..., width]."""
        return self.fc2(activate(self.fc1(x), self.activation))
