"""The LLaMA decoder, prefill only: visual tokens and a prompt in, the cognition feature out.

There is no LM head and no cache: one causal pass answers one picture. Rotary positions follow the "rotate half"
convention and RMSNorm runs in float32, as in the published weights. Module names are those of the official checkpoint.
Knows no tokeniser: ids come in ready.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.nn.attention import attention, merge_heads, split_heads
from trimvla.policies.sizes.config import LanguageConfig


class RmsNorm(nn.Module):
    """x / rms(x) * weight, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """float[..., width] -> the same."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


def rotary(positions: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for rotary embedding.

    Args:
        positions: int[...].
        dim: width of one head.
        theta: base of the wavelengths.

    Returns:
        Two float32[..., dim]: each half holds the same dim/2 frequencies.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions.float().unsqueeze(-1) * (1.0 / theta**exponents)
    return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([angles.sin()] * 2, dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate float[..., n, d] by the angles of its positions (cos, sin: [..., n, d])."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-high, low], dim=-1) * sin.to(x.dtype)


class DecoderAttention(nn.Module):
    """Causal attention; queries may be fewer than keys."""

    def __init__(self, cfg: LanguageConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.q_proj = nn.Linear(cfg.width, cfg.width, bias=False)
        self.k_proj = nn.Linear(cfg.width, cfg.width, bias=False)
        self.v_proj = nn.Linear(cfg.width, cfg.width, bias=False)
        self.o_proj = nn.Linear(cfg.width, cfg.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, row: Tensor | None = None) -> Tensor:
        """See `DecoderLayer.forward`; x is already normalised."""
        k, v = self.keys(x, cos, sin), split_heads(self.v_proj(x), self.heads)
        if row is not None:
            x, cos, sin, mask = take_row(x, row), angles_at(cos, row), angles_at(sin, row), mask[row][:, None, None]
        return self.mix(self.queries(x, cos, sin), k, v, mask)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, heads, n, d], rotated."""
        return rotate(split_heads(self.q_proj(x), self.heads), cos, sin)

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, heads, n, d], rotated."""
        return rotate(split_heads(self.k_proj(x), self.heads), cos, sin)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention and the output projection: float[b, heads, n, d] -> float[b, n, width]."""
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


class SwiGlu(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[..., width] -> the same."""
        return self.down_proj(self.channels(x))

    def channels(self, x: Tensor) -> Tensor:
        """What goes into down: float[..., width] -> float[..., hidden]."""
        return F.silu(self.gate_proj(x)) * self.up_proj(x)


class DecoderLayer(nn.Module):
    """One pre-norm LLaMA layer."""

    def __init__(self, cfg: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(cfg)
        self.mlp = SwiGlu(cfg.width, cfg.mlp_hidden)
        self.input_layernorm = RmsNorm(cfg.width, cfg.norm_eps)
        self.post_attention_layernorm = RmsNorm(cfg.width, cfg.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, row: Tensor | None = None) -> Tensor:
        """Run the layer.

        Args:
            x: float[b, n, width], the residual stream.
            cos: float[n, d], or float[b, 1, n, d] where sequences differ, of every position.
            sin: likewise.
            mask: bool[n, n] (or broadcastable to [b, heads, n, n]), True where a row may look.
            row: int64[b]; when given, only this position of each sequence is computed (the mask then in its
                two-dimensional form).

        Returns:
            float[b, n, width], or float[b, 1, width] with `row`.
        """
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, mask, row)
        return self.add_mlp(mixed + (x if row is None else take_row(x, row)))

    def add_mlp(self, x: Tensor) -> Tensor:
        """The second half of the layer: float[b, n, width] -> the same."""
        return x + self.mlp(self.post_attention_layernorm(x))


def take_row(x: Tensor, row: Tensor) -> Tensor:
    """float[b, n, width], int64[b] -> float[b, 1, width]."""
    return x.gather(1, row[:, None, None].expand(-1, 1, x.shape[-1]))


def angles_at(angles: Tensor, row: Tensor) -> Tensor:
    """Cosines or sines float[n, d] or float[b, 1, n, d] of one position int64[b] each: float[b, 1, 1, d]."""
    if angles.dim() == 2:
        return angles[row][:, None, None]
    return take_row(angles[:, 0], row)[:, None]


def causal_mask(length: int, device: torch.device) -> Tensor:
    """bool[n, n], True on and below the diagonal."""
    positions = torch.arange(length, device=device)
    return positions[:, None] >= positions[None, :]


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, cfg: LanguageConfig) -> None:
        super().__init__()
        self.head_dim, self.theta = cfg.width // cfg.heads, cfg.rope_theta
        self.embed_tokens = nn.Embedding(cfg.vocab, cfg.width)
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.layers))
        self.norm = RmsNorm(cfg.width, cfg.norm_eps)

    def embed(self, visual: Tensor, input_ids: Tensor) -> Tensor:
        """float[b, P, D], int64[b, L] -> float[b, P + L, D]: BOS, the visual tokens, the rest of the prompt."""
        text = self.embed_tokens(input_ids)
        return torch.cat([text[:, :1], visual.to(text.dtype), text[:, 1:]], dim=1)

    def context(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """cos, sin and causal mask for positions 0..n-1 of float[b, n, D]."""
        cos, sin = rotary(torch.arange(x.shape[1], device=x.device), self.head_dim, self.theta)
        return cos, sin, causal_mask(x.shape[1], x.device)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Every layer's full output, the slow and obvious way.

        Args:
            x: float[b, n, D] from `embed`.

        Returns:
            One float[b, n, D] per layer; the last is before the final norm.
        """
        cos, sin, mask = self.context(x)
        states = []
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
            states.append(x)
        return states

    def cognition(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> Tensor:
        """The cognition feature; the last layer computes nothing but its position.

        Args:
            visual: float[b, P, D].
            input_ids: int64[b, L], BOS first; anything right of `last` is padding that causality hides.
            last: int64[b], index of EOS in input_ids.

        Returns:
            float[b, D], after the final norm.
        """
        x = self.embed(visual, input_ids)
        cos, sin, mask = self.context(x)
        for layer in self.layers[:-1]:
            x = layer(x, cos, sin, mask)
        x = self.layers[-1](x, cos, sin, mask, row=last + visual.shape[1])
        return self.norm(x)[:, 0]
