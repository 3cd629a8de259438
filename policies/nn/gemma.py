"""Gemma's blocks: layers that are read for their keys and values, and norms that a condition can
modulate.

Keys and values are float[b, kv heads, n, d], keys rotated, so that another transformer can append
its own to them. Gemma's norm multiplies by 1 + weight; `weight` here is that sum. Knows no order of
tokens and no tokeniser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import split_heads
from trimvla.policies.nn.grouped import GatedMlp, GroupedAttention
from trimvla.policies.nn.llama import RmsNorm, rotary, rotate
from trimvla.policies.sizes.config import Activation

GATE: Activation = "gelu_tanh"


@dataclass(frozen=True)
class Heads:
    """Query heads, key-value heads, and the width of one."""

    queries: int
    keys: int
    dim: int


@dataclass(frozen=True)
class KeysValues:
    """Keys (rotated) and values, each float[b, kv heads, n, d]."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[2]

    def followed_by(self, other: KeysValues) -> KeysValues:
        """Both, along the positions."""
        keys = torch.cat([self.keys, other.keys], dim=2)
        return KeysValues(keys, torch.cat([self.values, other.values], dim=2))

    def first(self) -> KeysValues:
        """Of row 0 alone."""
        return KeysValues(self.keys[:, :, :1], self.values[:, :, :1])


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of the positions of some rows, each float32[b or 1, 1, n, d]."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: Tensor, dim: int, theta: float) -> Angles:
        """Of int64[b or 1, n] positions."""
        cos, sin = rotary(positions, dim, theta)
        return cls(cos[:, None], sin[:, None])

    def at(self, rows: Tensor) -> Angles:
        """Of the rows int64[b, k]."""
        index = rows[:, None, :, None].expand(-1, -1, -1, self.cos.shape[-1])
        whole = (part.expand(len(rows), -1, -1, -1) for part in (self.cos, self.sin))
        return Angles(*(part.gather(2, index) for part in whole))


class KeyValueProjection(nn.Module):
    """What attention needs of rows that only others look at."""

    def __init__(self, width: int, heads: Heads) -> None:
        super().__init__()
        self.kv_heads = heads.keys
        self.k_proj = nn.Linear(width, heads.keys * heads.dim, bias=False)
        self.v_proj = nn.Linear(width, heads.keys * heads.dim, bias=False)

    @classmethod
    def shared(cls, attention: GroupedAttention) -> KeyValueProjection:
        """With the weights of an attention."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.kv_heads = attention.kv_heads
        made.k_proj = attention.k_proj
        made.v_proj = attention.v_proj
        return made


def keys_values(
    projection: KeyValueProjection | GroupedAttention, x: Tensor, angles: Angles
) -> KeysValues:
    """Of float[b, n, width], already normalised."""
    keys, values = (
        split_heads(part(x), projection.kv_heads) for part in (projection.k_proj, projection.v_proj)
    )
    return KeysValues(rotate(keys, angles.cos, angles.sin), values)


class GemmaTail(nn.Module):
    """The deepest layer of a decoder that is read for its keys and values alone."""

    def __init__(self, width: int, heads: Heads, norm_eps: float) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(width, norm_eps)
        self.self_attn = KeyValueProjection(width, heads)

    def forward(self, x: Tensor, angles: Angles) -> KeysValues:
        """Of float[b, n, width], the residual stream."""
        return keys_values(self.self_attn, self.input_layernorm(x), angles)


class GemmaLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, width: int, heads: Heads, mlp_hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(width, norm_eps)
        self.self_attn = GroupedAttention(width, heads.queries, heads.keys, heads.dim)
        self.post_attention_layernorm = RmsNorm(width, norm_eps)
        self.mlp = GatedMlp(width, mlp_hidden, GATE)

    def forward(self, x: Tensor, angles: Angles, mask: Tensor) -> tuple[Tensor, KeysValues]:
        """The residual stream behind the layer, and the layer's keys and values.

        Args:
            x: float[b, n, width].
            angles: of the rows' positions.
            mask: bool, broadcast to [b, n, n]; True where a row may look.
        """
        normed = self.input_layernorm(x)
        own = keys_values(self.self_attn, normed, angles)
        q = self.self_attn.queries(normed, angles.cos, angles.sin)
        x = x + self.self_attn.mix(q, own.keys, own.values, mask)
        return x + self.mlp(self.post_attention_layernorm(x)), own

    def tail(self) -> GemmaTail:
        """The part of the layer that its keys and values need, with shared weights."""
        made = GemmaTail.__new__(GemmaTail)
        nn.Module.__init__(made)
        made.input_layernorm = self.input_layernorm
        made.self_attn = KeyValueProjection.shared(self.self_attn)
        return made


def narrow_mlp(mlp: GatedMlp, channels: Sequence[int]) -> GatedMlp:
    """The same channels of gate, up and down."""
    kept = torch.tensor(channels, device=mlp.gate_proj.weight.device)
    with torch.device("meta"):
        made = GatedMlp(mlp.gate_proj.in_features, len(channels), mlp.activation)
    for ours, theirs, axis in (
        (made.gate_proj, mlp.gate_proj, 0),
        (made.up_proj, mlp.up_proj, 0),
        (made.down_proj, mlp.down_proj, 1),
    ):
        ours.weight = nn.Parameter(theirs.weight.detach().index_select(axis, kept))
    return made


@dataclass(frozen=True)
class Modulation:
    """What a condition does to one norm and to what follows it; each float[width].

    `scale` is the factor itself, 1 + what the condition gives; `gate` is a factor of what attention
    or MLP make of the norm's output.
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor


class AdaRmsNorm(nn.Module):
    """x / rms(x) * scale + shift, in float32, both from a condition."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(width, 3 * width)

    def modulation(self, condition: Tensor) -> Tensor:
        """float[..., width] -> float[..., 3, width]: scale, shift, gate of `Modulation`."""
        given = self.dense(condition).unflatten(-1, (3, -1))
        scale, shift, gate = given.unbind(-2)
        return torch.stack([1.0 + scale, shift, gate], dim=-2)

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        """float[b, n, width] -> the same."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * modulation.scale + modulation.shift).to(x.dtype)
