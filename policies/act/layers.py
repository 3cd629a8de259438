"""The transformer's pieces, as DETR has them: positions are added to queries and keys, never to
values.

The decoder's input is a row of zeros for every action, so what its first layer's self-attention
gives is the same in every row and for every image: `FirstDecoderLayer` holds it as `start` and has
no self-attention. Knows no image and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.act.config import ActConfig, Activation
from trimvla.policies.nn.attention import attention, merge_heads, split_heads


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values from rows of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """float[b, n, width], float[b, m, width] twice -> float[b, n, width]."""
        q = split_heads(self.q(queries), self.heads)
        k = split_heads(self.k(keys), self.heads)
        v = split_heads(self.v(values), self.heads)
        return self.out(merge_heads(attention(q, k, v)))


class FeedForward(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., width] -> float[..., width]."""
        hidden = self.fc1(x)
        return self.fc2(F.relu(hidden) if self.activation == "relu" else F.gelu(hidden))

    def narrowed(self, channels: Sequence[int]) -> FeedForward:
        """The same with these of its channels alone."""
        kept = torch.tensor(channels)
        made = FeedForward(self.fc1.in_features, len(channels), self.activation)
        made.fc1.weight = nn.Parameter(self.fc1.weight[kept])
        made.fc1.bias = nn.Parameter(self.fc1.bias[kept])
        made.fc2.weight = nn.Parameter(self.fc2.weight[:, kept])
        made.fc2.bias = self.fc2.bias
        return made


class EncoderLayer(nn.Module):
    """Self-attention and MLP, normed before each or behind each."""

    def __init__(self, cfg: ActConfig) -> None:
        super().__init__()
        self.pre_norm = cfg.pre_norm
        self.attention = Attention(cfg.width, cfg.heads)
        self.mlp = FeedForward(cfg.width, cfg.mlp_hidden, cfg.activation)
        self.norm1 = nn.LayerNorm(cfg.width)
        self.norm2 = nn.LayerNorm(cfg.width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """float[b, n, width], float[n, width] -> float[b, n, width]."""
        y = self.norm1(x) if self.pre_norm else x
        x = x + self.attention(y + positions, y + positions, y)
        if self.pre_norm:
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x)
        return self.norm2(x + self.mlp(x))

    def narrowed(self, channels: Sequence[int]) -> EncoderLayer:
        """The same with these of its MLP's channels alone; all else is shared."""
        made = copy(self)
        made._modules = {**self._modules, "mlp": self.mlp.narrowed(channels)}
        return made


class FirstDecoderLayer(nn.Module):
    """Attention to the encoder and MLP, from what self-attention gives for rows of zeros."""

    def __init__(self, cfg: ActConfig) -> None:
        super().__init__()
        self.pre_norm = cfg.pre_norm
        self.start = nn.Parameter(torch.zeros(cfg.width))
        self.cross = Attention(cfg.width, cfg.heads)
        self.mlp = FeedForward(cfg.width, cfg.mlp_hidden, cfg.activation)
        self.norm2 = nn.LayerNorm(cfg.width)
        self.norm3 = nn.LayerNorm(cfg.width)

    def forward(self, memory: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        """float[b, n, width] without and with positions, float[H, width] -> float[b, H, width]."""
        x = self.start.expand(len(memory), len(queries), -1)
        return look(self, x, memory, keys, queries)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder, MLP."""

    def __init__(self, cfg: ActConfig) -> None:
        super().__init__()
        self.pre_norm = cfg.pre_norm
        self.attention = Attention(cfg.width, cfg.heads)
        self.cross = Attention(cfg.width, cfg.heads)
        self.mlp = FeedForward(cfg.width, cfg.mlp_hidden, cfg.activation)
        self.norm1 = nn.LayerNorm(cfg.width)
        self.norm2 = nn.LayerNorm(cfg.width)
        self.norm3 = nn.LayerNorm(cfg.width)

    def forward(self, x: Tensor, memory: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        """float[b, H, width], then as `FirstDecoderLayer` -> float[b, H, width]."""
        y = self.norm1(x) if self.pre_norm else x
        x = x + self.attention(y + queries, y + queries, y)
        return look(self, x if self.pre_norm else self.norm1(x), memory, keys, queries)


def look(
    layer: FirstDecoderLayer | DecoderLayer,
    x: Tensor,
    memory: Tensor,
    keys: Tensor,
    queries: Tensor,
) -> Tensor:
    """The part of a decoder layer behind its self-attention."""
    y = layer.norm2(x) if layer.pre_norm else x
    x = x + layer.cross(y + queries, keys, memory)
    if layer.pre_norm:
        return x + layer.mlp(layer.norm3(x))
    x = layer.norm2(x)
    return layer.norm3(x + layer.mlp(x))
