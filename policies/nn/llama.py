"""The decoder of LLaMA and Qwen2, prefill only: visual tokens and a prompt in, the cognition
feature out.

There is no LM head and nothing is generated: one causal pass answers one image. Text in front of
the image that never changes may be folded into keys and values (`Past`). Rotary positions follow
the "rotate half" convention and RMSNorm runs in float32, as in the published weights. Module names
are those of the official checkpoint. Knows no tokeniser: ids come in ready.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.nn.attention import attention, merge_heads, split_heads
from trimvla.policies.sizes.config import LanguageConfig

Past = tuple[Tensor, Tensor]
"""Keys, rotated, and values of the positions before the first, float[1, kv_heads, m, d] each, for
one layer.
"""


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
    """Causal attention; queries may be fewer than keys, and heads of keys fewer than those of
    queries.
    """

    def __init__(self, cfg: LanguageConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.kv_heads = cfg.kv_heads
        shared = cfg.kv_heads * cfg.head_dim
        self.q_proj = nn.Linear(cfg.width, cfg.width, bias=cfg.qkv_bias)
        self.k_proj = nn.Linear(cfg.width, shared, bias=cfg.qkv_bias)
        self.v_proj = nn.Linear(cfg.width, shared, bias=cfg.qkv_bias)
        self.o_proj = nn.Linear(cfg.width, cfg.width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        row: Tensor | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        """See `DecoderLayer.forward`; x is already normalised."""
        k, v = joined(past, self.keys(x, cos, sin), self.values(x))
        if row is not None:
            x = take_row(x, row)
            cos = angles_at(cos, row)
            sin = angles_at(sin, row)
            mask = mask[row][:, None, None]
        return self.mix(self.queries(x, cos, sin), k, v, mask)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, heads, n, d], rotated."""
        return rotate(split_heads(self.q_proj(x), self.heads), cos, sin)

    def keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, kv_heads, n, d], rotated."""
        return rotate(split_heads(self.k_proj(x), self.kv_heads), cos, sin)

    def values(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, kv_heads, n, d]."""
        return split_heads(self.v_proj(x), self.kv_heads)

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
    """One pre-norm layer."""

    def __init__(self, cfg: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(cfg)
        self.mlp = SwiGlu(cfg.width, cfg.mlp_hidden)
        self.input_layernorm = RmsNorm(cfg.width, cfg.norm_eps)
        self.post_attention_layernorm = RmsNorm(cfg.width, cfg.norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        row: Tensor | None = None,
        *,
        past: Past | None = None,
    ) -> Tensor:
        """Run the layer.

        Args:
            x: float[b, n, width], the residual stream.
            cos: float[n, d], or float[b, 1, n, d] where sequences differ, of every position.
            sin: likewise.
            mask: bool[n, m + n] (or broadcastable to [b, heads, n, m + n]), True where a row may
                look.
            row: int64[b]; when given, only this position of each sequence is computed (the mask
                then in its two-dimensional form).
            past: of the m positions before x, where there are any.

        Returns:
            float[b, n, width], or float[b, 1, width] with `row`.
        """
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, mask, row, past=past)
        return self.add_mlp(mixed + (x if row is None else take_row(x, row)))

    def add_mlp(self, x: Tensor) -> Tensor:
        """The second half of the layer: float[b, n, width] -> the same."""
        return x + self.mlp(self.post_attention_layernorm(x))


def take_row(x: Tensor, row: Tensor) -> Tensor:
    """float[b, n, width], int64[b] -> float[b, 1, width]."""
    return x.gather(1, row[:, None, None].expand(-1, 1, x.shape[-1]))


def angles_at(angles: Tensor, row: Tensor) -> Tensor:
    """Cosines or sines float[n, d] or float[b, 1, n, d] of one position int64[b] each: float[b, 1,
    1, d].
    """
    if angles.dim() == 2:
        return angles[row][:, None, None]
    return take_row(angles[:, 0], row)[:, None]


def joined(past: Past | None, k: Tensor, v: Tensor) -> Past:
    """Keys and values of the past and of now, float[b, kv_heads, m + n, d] each."""
    if past is None:
        return k, v
    return torch.cat([past[0].expand(len(k), -1, -1, -1), k], 2), torch.cat(
        [past[1].expand(len(v), -1, -1, -1), v], 2
    )


def causal_mask(length: int, device: torch.device, past: int = 0) -> Tensor:
    """bool[n, past + n]: a row sees the past, itself and the rows above it."""
    positions = torch.arange(length, device=device)
    mask = positions[:, None] >= positions[None, :]
    return torch.cat([mask.new_ones(length, past), mask], dim=1) if past else mask


class Decoder(nn.Module):
    """Embedding, layers, final norm.

    `lead` ids of a prompt stand before the images of all `cameras`, the others behind them. In
    front of them all may stand a text that never changes: `fold` computes its keys and values once.
    """

    folded_keys: Tensor | None
    folded_values: Tensor | None

    def __init__(self, cfg: LanguageConfig, lead: int = 1, cameras: int = 1) -> None:
        super().__init__()
        self.head_dim = cfg.head_dim
        self.theta = cfg.rope_theta
        self.lead = lead
        self.cameras = cameras
        self.register_buffer("folded_keys", None, persistent=False)
        self.register_buffer("folded_values", None, persistent=False)
        self.embed_tokens = nn.Embedding(cfg.vocab, cfg.width)
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.layers))
        self.norm = RmsNorm(cfg.width, cfg.norm_eps)

    def embed(self, visual: Tensor, input_ids: Tensor) -> Tensor:
        """float[b, P, D], int64[b, L] -> float[b, P + L, D]: `lead` ids, the visual tokens, the
        rest of the prompt.
        """
        text = self.embed_tokens(input_ids)
        before = [text[:, : self.lead]] if self.lead else []
        return torch.cat([*before, visual.to(text.dtype), text[:, self.lead :]], dim=1)

    @property
    def folded(self) -> int:
        """Positions in front of the prompt whose keys and values are folded in."""
        return 0 if self.folded_keys is None else self.folded_keys.shape[-2]

    def past(self, layer: int) -> Past | None:
        """Of one of the layers that run."""
        if self.folded_keys is None or self.folded_values is None:
            return None
        return self.folded_keys[layer], self.folded_values[layer]

    @torch.no_grad()
    def fold(self, ids: Tensor) -> None:
        """Put a text int64[1, m] in front of every prompt, as keys and values that are computed
        now.
        """
        x = self.embed_tokens(ids)
        cos, sin, mask = self.context(x, past=0)
        keys = []
        values = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            normed = layer.input_layernorm(x)
            keys.append(layer.self_attn.keys(normed, cos, sin))
            values.append(layer.self_attn.values(normed))
            x = layer(x, cos, sin, mask)
        self.folded_keys = torch.stack(keys)
        self.folded_values = torch.stack(values)

    def context(self, x: Tensor, past: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """cos, sin and causal mask for float[b, n, D] behind `past` positions (None: those that are
        folded in).
        """
        past = self.folded if past is None else past
        positions = torch.arange(past, past + x.shape[1], device=x.device)
        cos, sin = rotary(positions, self.head_dim, self.theta)
        return cos, sin, causal_mask(x.shape[1], x.device, past)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Every layer's full output, the slow and obvious way; nothing is taken as folded in.

        Args:
            x: float[b, n, D], a whole sequence: from `embed`, where nothing is folded in.

        Returns:
            One float[b, n, D] per layer; the last is before the final norm.
        """
        cos, sin, mask = self.context(x, past=0)
        states = []
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
            states.append(x)
        return states

    def cognition(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> Tensor:
        """The cognition feature; the last layer computes nothing but its position.

        Args:
            visual: float[b, P, D].
            input_ids: int64[b, L]; anything right of `last` is padding that causality hides.
            last: int64[b], index of EOS in input_ids.

        Returns:
            float[b, D], after the final norm.
        """
        x = self.embed(visual, input_ids)
        cos, sin, mask = self.context(x)
        for index, layer in enumerate(self.layers[:-1]):
            x = layer(x, cos, sin, mask, past=self.past(index))
        end = len(self.layers) - 1
        x = self.layers[end](x, cos, sin, mask, row=last + visual.shape[1], past=self.past(end))
        return self.norm(x)[:, 0]
