"""Gemma over images and text, all rows seeing each other; read layer by layer for its keys and
values alone.

Under a plan, some layers are gone, some are read by nobody, and visual tokens leave on the way:
then the layers behind have fewer keys. What stays keeps its order and its position in the whole
sequence. The deepest layer computes nothing but keys and values. Knows no criterion and no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trimvla.policies.nn.gemma import Angles, GemmaLayer, GemmaTail, Heads, KeysValues, keys_values
from trimvla.policies.nn.grouped import grouped_probabilities
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.expert import Memory
from trimvla.policies.trimming.tokens import Seen, select
from trimvla.runtime.bundle.plan import TokenPlan


@dataclass(frozen=True)
class Rows:
    """The sequence between two layers: V visual rows, then L of text."""

    x: Tensor
    """float[b, V + L, D]."""
    angles: Angles
    valid: Tensor
    """bool[b, V + L]: False at padding."""
    visual: int
    """V."""


@dataclass(frozen=True)
class PrefixOutput:
    """What the expert reads, and the raster indices int64[b, K] of the visual tokens that were
    kept, if any went.
    """

    memory: Memory
    kept: Tensor | None


class Prefix(nn.Module):
    """The decoder under any plan.

    `reads[layer]`: whether the expert reads that layer; the deepest is read.
    """

    def __init__(
        self,
        cfg: Pi0Config,
        embed_tokens: nn.Embedding,
        layers: Sequence[nn.Module],
        tail: GemmaTail,
        *,
        reads: Sequence[bool],
        tokens: TokenPlan | None = None,
        places: tuple[int, ...] | None = None,
    ) -> None:
        """Of these parts.

        Args:
            cfg: the policy's sizes.
            embed_tokens: the table.
            layers: all but the deepest.
            tail: the deepest.
            reads: one for each of `layers`.
            tokens: which visual tokens leave, and where.
            places: positions of the visual rows that come in, where the encoder has dropped some
                already.
        """
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(layers)
        self.tail = tail
        self.reads = tuple(reads)
        self.tokens = tokens
        self.places = places

    @classmethod
    def of(cls, cfg: Pi0Config) -> Prefix:
        """The dense decoder, with torch's default weights."""
        language = cfg.language
        heads = Heads(language.heads, language.kv_heads, language.head_dim)
        layers = [
            GemmaLayer(language.width, heads, language.mlp_hidden, language.norm_eps)
            for _ in range(language.layers - 1)
        ]
        return cls(
            cfg,
            nn.Embedding(language.vocab, language.width),
            layers,
            GemmaTail(language.width, heads, language.norm_eps),
            reads=[True] * len(layers),
        )

    def embed(self, visual: Tensor, input_ids: Tensor) -> Tensor:
        """float[b, V, D], int64[b, L] -> float[b, V + L, D]; the text alone is multiplied by
        sqrt(D).
        """
        text = self.embed_tokens(input_ids) * math.sqrt(self.embed_tokens.embedding_dim)
        return torch.cat([visual.to(text.dtype), text], dim=1)

    def rows(self, x: Tensor, length: Tensor, visual: int) -> Rows:
        """What `embed` gives, with positions and padding; `length` int64[b] ids are no padding."""
        index = torch.arange(x.shape[1], device=x.device)
        positions = index
        if self.places is not None:
            text = self.cfg.visual_tokens + torch.arange(x.shape[1] - visual, device=x.device)
            positions = torch.cat([torch.tensor(self.places, device=x.device), text])
        language = self.cfg.language
        angles = Angles.of(positions[None], language.head_dim, language.rope_theta)
        return Rows(x, angles, index < visual + length[:, None], visual)

    def forward(self, visual: Tensor, input_ids: Tensor, length: Tensor) -> Memory:
        """Keys and values of every layer that is read: see `memory_and_kept`."""
        return self.memory_and_kept(visual, input_ids, length).memory

    def memory_and_kept(self, visual: Tensor, input_ids: Tensor, length: Tensor) -> PrefixOutput:
        """Run the decoder.

        Args:
            visual: float[b, V, D].
            input_ids: int64[b, L], padded on the right.
            length: int64[b], ids that are no padding.
        """
        rows = self.rows(self.embed(visual, input_ids), length, visual.shape[1])
        kept: Tensor | None = None
        layers: list[KeysValues] = []
        valid: list[Tensor] = []
        scores: Tensor | None = None
        for index in range(len(self.layers) + 1):
            if self.tokens is not None and index == self.tokens.after:
                kept = self.choose(rows, visual, scores)
                rows = keep_rows(rows, kept)
            if index == len(self.layers):
                layers.append(self.tail(rows.x, rows.angles))
                valid.append(rows.valid)
                break
            scores = self.scores_before(index, rows, length)
            x, own = self.layers[index](rows.x, rows.angles, rows.valid[:, None])
            rows = replace(rows, x=x)
            if self.reads[index]:
                layers.append(own)
                valid.append(rows.valid)
        memory = Memory(tuple(layers), tuple(valid), self.cfg.visual_tokens + length)
        return PrefixOutput(memory, kept)

    # --- which tokens stay ---

    def scores_before(self, index: int, rows: Rows, length: Tensor) -> Tensor | None:
        """Relevance float[b, V] by the attention of the layer `index`, where the plan reads that
        one.
        """
        plan = self.tokens
        if plan is None or plan.source != "previous" or index != plan.after - 1:
            return None
        layer = self.layers[index]
        assert isinstance(layer, GemmaLayer)
        return self.relevance(layer, rows, length)

    def choose(self, rows: Rows, visual: Tensor, scores: Tensor | None) -> Tensor:
        """int64[b, K] of the visual rows, ascending."""
        plan = self.tokens
        assert plan is not None
        if plan.source == "next" and plan.scored is not None:
            layer = self.layers[plan.after]
            assert isinstance(layer, GemmaLayer)
            scores = self.relevance(layer, rows, rows.valid.sum(dim=1) - rows.visual)
        features = rows.x[:, : rows.visual] if plan.embedding == "hidden" else visual
        return select(plan, Seen(features, scores, len(self.cfg.cameras)))

    def relevance(self, layer: GemmaLayer, rows: Rows, length: Tensor) -> Tensor:
        """How much the plan's text rows look at each visual row: sum over rows of the mean over
        heads, float[b, V].
        """
        assert self.tokens is not None
        text = self.attention_of(layer, rows)[:, :, rows.visual :, : rows.visual].mean(dim=1)
        index = torch.arange(text.shape[1], device=text.device)
        counted = index < length[:, None]
        if self.tokens.scored == "last":
            counted = index == length[:, None] - 1
        elif self.tokens.scored == "instruction":  # neither BOS nor what closes the prompt
            counted = (index > 0) & (index < length[:, None] - 1)
        return (text * counted[..., None]).sum(dim=1)

    @staticmethod
    def attention_of(layer: GemmaLayer, rows: Rows) -> Tensor:
        """A layer's attention over its input, float32[b, heads, n, n]."""
        normed = layer.input_layernorm(rows.x)
        q = layer.self_attn.queries(normed, rows.angles.cos, rows.angles.sin)
        keys = keys_values(layer.self_attn, normed, rows.angles).keys
        return grouped_probabilities(q, keys, rows.valid[:, None]).flatten(1, 2)


def keep_rows(rows: Rows, kept: Tensor) -> Rows:
    """The visual rows int64[b, K] and all text."""
    text = torch.arange(rows.visual, rows.x.shape[1], device=kept.device)
    index = torch.cat([kept, text.expand(len(kept), -1)], dim=1)
    x = rows.x.gather(1, index[..., None].expand(-1, -1, rows.x.shape[-1]))
    valid = rows.valid.expand(len(kept), -1).gather(1, index)
    return Rows(x, rows.angles.at(index), valid, kept.shape[1])
