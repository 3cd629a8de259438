"""The decoder over images, text and state, read layer by layer for its keys and values alone.

Rows are [visual tokens, state, text, padding]. Visual tokens and text see each other; the state
sees all and is seen by no one. Positions are those of the public code, where the state comes last:
the order of rows changes nothing else, and this one keeps padding at the end. The deepest layer
computes nothing but keys and values. Under a plan, visual tokens leave on the way: what stays keeps
its order and its position. Knows no criterion and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trimvla.policies.nn.grouped import GatedMlp, GroupedAttention, grouped_probabilities
from trimvla.policies.nn.llama import RmsNorm
from trimvla.policies.smolvla.config import SmolVlaConfig, TextConfig
from trimvla.policies.smolvla.keys_values import Angles, KeysValues, KeyValueProjection
from trimvla.policies.smolvla.vision import constant, take
from trimvla.policies.trimming.tokens import Seen, select
from trimvla.runtime.bundle.plan import TokenPlan

Looked = Callable[[Sequence[KeysValues], Tensor], Tensor]
"""Keys and values of the layers so far, bool[b, n] of rows that are no padding -> relevance
float[b, V].
"""


class PrefixLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.self_attn = GroupedAttention(cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim)
        self.mlp = GatedMlp(cfg.width, cfg.mlp_hidden)
        self.input_layernorm = RmsNorm(cfg.width, cfg.norm_eps)
        self.post_attention_layernorm = RmsNorm(cfg.width, cfg.norm_eps)

    def forward(self, rows: Rows) -> tuple[Tensor, KeysValues]:
        """The stream float[b, n, width] behind the layer, and what the expert reads."""
        normed = self.input_layernorm(rows.x)
        cos = rows.angles.cos
        sin = rows.angles.sin
        own = KeysValues(self.self_attn.keys(normed, cos, sin), self.self_attn.values(normed))
        q = self.self_attn.queries(normed, cos, sin)
        x = rows.x + self.self_attn.mix(q, own.keys, own.values, rows.mask)
        return x + self.mlp(self.post_attention_layernorm(x)), own

    @staticmethod
    def leaves() -> tuple[str, ...]:
        """Names of its weights."""
        attention = (f"self_attn.{part}_proj.weight" for part in "qkvo")
        mlp = (f"mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        return (*attention, *mlp, "input_layernorm.weight", "post_attention_layernorm.weight")

    def attention_of(self, rows: Rows, some: slice) -> Tensor:
        """What some rows look at, at the layer's input: float32[b, heads, rows, n]."""
        normed = self.input_layernorm(rows.x)
        angles = rows.angles
        keys = self.self_attn.keys(normed, angles.cos, angles.sin)
        q = self.self_attn.queries(
            normed[:, some], angles.cos[..., some, :], angles.sin[..., some, :]
        )
        return grouped_probabilities(q, keys, rows.mask[:, some]).flatten(1, 2)


class DeepestLayer(nn.Module):
    """The layer behind which nothing is read: keys and values, no more."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.self_attn = KeyValueProjection(cfg.width, cfg.kv_heads, cfg.head_dim)
        self.input_layernorm = RmsNorm(cfg.width, cfg.norm_eps)

    @classmethod
    def sharing(cls, layer: nn.Module) -> DeepestLayer:
        """Of another layer's weights."""
        if isinstance(layer, DeepestLayer):
            return layer
        assert isinstance(layer, PrefixLayer)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.self_attn = KeyValueProjection.sharing(layer.self_attn)
        made.input_layernorm = layer.input_layernorm
        return made

    def forward(self, rows: Rows) -> KeysValues:
        """What the expert reads."""
        return self.self_attn(self.input_layernorm(rows.x), rows.angles)


@dataclass(frozen=True)
class Rows:
    """The sequence in front of a layer: `visual` rows of images, then the state, then the text."""

    x: Tensor
    """float[b, n, D]."""
    angles: Angles
    mask: Tensor
    """bool[b, n, n]: True where a row may look."""
    visual: int

    @property
    def valid(self) -> Tensor:
        """bool[b, n]: what the state sees, which is all but padding."""
        return self.mask[:, self.visual]


@dataclass(frozen=True)
class PrefixOutput:
    """Keys and values of every layer, which rows of them count, and the visual tokens int64[b, K]
    that stayed.
    """

    layers: tuple[KeysValues, ...]
    valid: tuple[Tensor, ...]
    kept: Tensor | None


class Prefix(nn.Module):
    """The decoder under any plan."""

    def __init__(
        self,
        cfg: SmolVlaConfig,
        embed_tokens: nn.Embedding,
        state_proj: nn.Linear,
        layers: Sequence[nn.Module],
        *,
        tokens: TokenPlan | None = None,
        places: tuple[int, ...] | None = None,
        visual: int | None = None,
    ) -> None:
        """Of these parts.

        Args:
            cfg: the policy's sizes.
            embed_tokens: the table.
            state_proj: the state to its row.
            layers: the last one is a `DeepestLayer`.
            tokens: which visual tokens leave, and where.
            places: positions of the visual rows that come in; all of them in order where it is
                none.
            visual: positions that visual rows have, come or not; the config's where it is none.
        """
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = embed_tokens
        self.state_proj = state_proj
        self.layers = nn.ModuleList(layers)
        self.tokens = tokens
        self.places = places
        self.visual = cfg.visual_tokens if visual is None else visual
        rows = self.visual + cfg.prompt.longest + 1
        self.table = Angles.table(rows, cfg.text.head_dim, cfg.text.rope_base)

    @classmethod
    def of(cls, cfg: SmolVlaConfig) -> Prefix:
        """The dense decoder, with torch's default weights."""
        text = cfg.text
        inner = [PrefixLayer(text) for _ in range(text.layers - 1)]
        return cls(
            cfg,
            nn.Embedding(text.vocab, text.width),
            nn.Linear(cfg.padded_state_dim, text.width),
            [*inner, DeepestLayer(text)],
        )

    def embed(self, visual: Tensor, input_ids: Tensor, state: Tensor) -> Tensor:
        """float[V, D] or [b, V, D], int64[b, L], float[b, S] -> float[b, V + 1 + L, D]; all but the
        state scaled.
        """
        text = self.embed_tokens(input_ids)
        factor = math.sqrt(text.shape[-1])
        seen = visual.expand(len(text), -1, -1) * factor
        return torch.cat([seen, self.state_proj(state)[:, None], text * factor], dim=1)

    def rows(self, x: Tensor, length: Tensor, visual: int) -> Rows:
        """What `embed` gives, with positions and what may be seen.

        Args:
            x: float[b, n, D].
            length: int64[b], ids that are no padding.
            visual: rows of images.
        """
        count = x.shape[1]
        text = torch.arange(count - visual - 1, device=length.device) + self.visual
        places = range(visual) if self.places is None else self.places
        seen = self.table.at(constant(places, length))
        state = self.table.of_each((self.visual + length)[:, None])
        angles = seen.followed_by(state).followed_by(self.table.at(text))
        return Rows(x, angles, visible(count, visual, length), visual)

    def forward(
        self,
        visual: Tensor,
        input_ids: Tensor,
        length: Tensor,
        state: Tensor,
        looked: Looked | None = None,
    ) -> PrefixOutput:
        """Run the decoder.

        Args:
            visual: float[V, D].
            input_ids: int64[b, L], padded on the right.
            length: int64[b], ids that are no padding.
            state: float[b, padded state], normalised.
            looked: where the plan's tokens are chosen by the expert: its relevance.
        """
        rows = self.rows(self.embed(visual, input_ids, state), length, visual.shape[-2])
        layers: list[KeysValues] = []
        valid: list[Tensor] = []
        kept: Tensor | None = None
        scores: Tensor | None = None
        for index, layer in enumerate(self.layers):
            if self.tokens is not None and index == self.tokens.after:
                if looked is not None:
                    scores = looked(layers, rows.valid)
                kept = self.choose(index, rows, visual, length, scores)
                rows = keep_rows(rows, kept, length)
            valid.append(rows.valid)
            if index == len(self.layers) - 1:
                layers.append(layer(rows))
                break
            scores = self.scores_of(index, "previous", rows, length)
            x, own = layer(rows)
            rows = replace(rows, x=x)
            layers.append(own)
        return PrefixOutput(tuple(layers), tuple(valid), self.in_image(kept))

    # --- which tokens stay ---

    def choose(
        self, index: int, rows: Rows, visual: Tensor, length: Tensor, scores: Tensor | None
    ) -> Tensor:
        """int64[b, K] of the visual rows in front of layer `index`, ascending."""
        plan = self.tokens
        assert plan is not None
        if plan.source == "next":
            scores = self.scores_of(index, "next", rows, length)
        hidden = plan.embedding == "hidden"
        features = rows.x[:, : rows.visual] if hidden else visual.expand(len(rows.x), -1, -1)
        return select(plan, Seen(features, scores, len(self.cfg.cameras)))

    def scores_of(self, index: int, source: str, rows: Rows, length: Tensor) -> Tensor | None:
        """Relevance float[b, V] by the attention of layer `index`, where the plan reads that
        one.
        """
        plan = self.tokens
        if plan is None or plan.source != source or plan.scored is None:
            return None
        if index != plan.after - (source == "previous"):
            return None
        layer = self.layers[index]
        assert isinstance(layer, PrefixLayer)
        return relevance(layer, rows, plan.scored, length)

    def in_image(self, kept: Tensor | None) -> Tensor | None:
        """Rows that stayed -> their visual tokens over all cameras' raster, dropped patches counted
        too.
        """
        if kept is None or self.places is None:
            return kept
        return constant(self.places, kept)[kept]


def visible(count: int, visual: int, length: Tensor) -> Tensor:
    """bool[b, n, n] of n = visual + 1 + text rows, `length` int64[b] of the text no padding."""
    index = torch.arange(count, device=length.device)
    state = index == visual
    valid = index < visual + 1 + length[:, None]
    return valid[:, None] & (state[:, None] | ~state)


def relevance(layer: PrefixLayer, rows: Rows, of: str, length: Tensor) -> Tensor:
    """How much the rows `of` look at each visual row: sum over them of the mean over heads,
    float[b, V].
    """
    state = rows.visual
    some = slice(state, state + 1) if of == "state" else slice(state + 1, None)
    looked = layer.attention_of(rows, some)[..., : rows.visual].mean(dim=1)
    if of == "state":
        return looked[:, 0]
    index = torch.arange(looked.shape[1], device=length.device)
    last = length[:, None] - 1
    last = last - 1 if of == "instruction" else last  # without the newline
    counted = index == last if of == "last" else index <= last
    return (looked * counted[..., None].to(looked.dtype)).sum(dim=1)


def keep_rows(rows: Rows, kept: Tensor, length: Tensor) -> Rows:
    """The visual rows int64[b, K], the state and all text."""
    behind = torch.arange(rows.visual, rows.x.shape[1], device=kept.device)
    index = torch.cat([kept, behind.expand(len(kept), -1)], dim=1)
    visual = kept.shape[1]
    mask = visible(index.shape[1], visual, length)
    return Rows(take(rows.x, index), rows.angles.rows(index), mask, visual)
