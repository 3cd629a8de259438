"""The action expert: a narrow decoder over a chunk of noisy actions that reads the prefix layer by
layer.

Layers of one kind attend to the prefix and, causally, to the actions, at positions behind the
prefix. Layers of the other kind attend to the prefix alone, through projections of its keys and
values that no sampler step changes: those are made once (`ExpertLayer.memory`). Knows no Euler step
(`nn.flow`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.nn.attention import merge_heads, split_heads
from trimvla.policies.nn.flow import (
    StepCache,
    Velocity,
    time_embedding,
)
from trimvla.policies.nn.grouped import GatedMlp, GroupedAttention, grouped_probabilities
from trimvla.policies.nn.llama import RmsNorm
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.keys_values import Angles, KeysValues


@dataclass(frozen=True)
class Memory:
    """What every kept expert layer reads of the prefix, and which rows of it count."""

    layers: tuple[KeysValues, ...]
    valid: tuple[Tensor, ...]
    """bool[b, n] for each layer."""


@dataclass(frozen=True)
class Surroundings:
    """What does not change from step to step: angles of both kinds of layers, and one mask a
    layer.
    """

    behind: Angles
    """Of the actions behind the prefix."""
    first: Angles
    """Of the actions alone."""
    masks: tuple[Tensor, ...]

    def of(self, layer: nn.Module) -> Angles:
        """Of the layer's kind."""
        return self.behind if as_layer(layer).joined else self.first


class ExpertLayer(nn.Module):
    """One pre-norm layer; `joined` ones attend to the actions beside the prefix."""

    def __init__(self, cfg: SmolVlaConfig, index: int) -> None:
        """The layer of this original index."""
        super().__init__()
        text = cfg.text
        expert = cfg.expert
        self.joined = expert.attends_to_actions(index)
        source = None if self.joined else text.kv_width
        self.self_attn = GroupedAttention(
            expert.width, text.heads, text.kv_heads, text.head_dim, source
        )
        self.mlp = GatedMlp(expert.width, expert.mlp_hidden)
        self.input_layernorm = RmsNorm(expert.width, text.norm_eps)
        self.post_attention_layernorm = RmsNorm(expert.width, text.norm_eps)

    def memory(self, prefix: KeysValues) -> KeysValues:
        """What the layer reads of the prefix's keys and values."""
        if self.joined:
            return prefix
        attend = self.self_attn
        keys = split_heads(attend.k_proj(merge_heads(prefix.keys)), attend.kv_heads)
        return KeysValues(keys, attend.values(merge_heads(prefix.values)))

    def forward(self, x: Tensor, memory: KeysValues, angles: Angles, mask: Tensor) -> Tensor:
        """float[b, H, width] -> the same; `angles` of the actions as the layer's kind has them."""
        normed = self.input_layernorm(x)
        attend = self.self_attn
        if self.joined:
            keys = attend.keys(normed, angles.cos, angles.sin)
            memory = memory.followed_by(KeysValues(keys, attend.values(normed)))
        q = attend.queries(normed, angles.cos, angles.sin)
        x = x + attend.mix(q, memory.keys, memory.values, mask)
        return x + self.mlp(self.post_attention_layernorm(x))

    def looks_at(self, x: Tensor, memory: KeysValues, angles: Angles, mask: Tensor) -> Tensor:
        """What the actions look at, of a layer that sees the prefix alone: float32[b, heads, H,
        n].
        """
        normed = self.input_layernorm(x)
        q = self.self_attn.queries(normed, angles.cos, angles.sin)
        return grouped_probabilities(q, memory.keys, mask).flatten(1, 2)


class Expert(nn.Module):
    """The velocity of noisy actions."""

    def __init__(
        self, cfg: SmolVlaConfig, layers: Iterable[nn.Module], ends: nn.ModuleDict
    ) -> None:
        """Of these layers; `ends` holds the projections around them and the final norm."""
        super().__init__()
        self.cfg = cfg
        self.layers = nn.ModuleList(layers)
        self.norm = ends["norm"]
        self.action_in_proj = ends["action_in_proj"]
        self.action_time_mlp_in = ends["action_time_mlp_in"]
        self.action_time_mlp_out = ends["action_time_mlp_out"]
        self.action_out_proj = ends["action_out_proj"]

    @classmethod
    def of(cls, cfg: SmolVlaConfig) -> Expert:
        """The dense expert, with torch's default weights."""
        width = cfg.expert.width
        actions = cfg.padded_action_dim
        ends = {
            "norm": RmsNorm(width, cfg.text.norm_eps),
            "action_in_proj": nn.Linear(actions, width),
            "action_time_mlp_in": nn.Linear(2 * width, width),
            "action_time_mlp_out": nn.Linear(width, width),
            "action_out_proj": nn.Linear(width, actions),
        }
        layers = [ExpertLayer(cfg, index) for index in range(cfg.text.layers)]
        return cls(cfg, layers, nn.ModuleDict(ends))

    def without_layers(self) -> Expert:
        """The ends alone: the same whatever layers a plan keeps."""
        return self.with_layers(())

    def with_layers(self, layers: Iterable[nn.Module]) -> Expert:
        """The same around other layers."""
        names = (
            "norm",
            "action_in_proj",
            "action_time_mlp_in",
            "action_time_mlp_out",
            "action_out_proj",
        )
        return Expert(
            self.cfg, layers, nn.ModuleDict({name: getattr(self, name) for name in names})
        )

    def time_table(self, times: Sequence[float]) -> Tensor:
        """float32[times, width]: the embedding of every step's time, worked out outside of any
        graph.
        """
        flow = self.cfg.flow
        return time_embedding(times, self.cfg.expert.width, flow.min_period, flow.max_period)

    def surroundings(self, memory: Memory, positions: Tensor, table: Angles) -> Surroundings:
        """What every step has around it.

        Args:
            memory: what the layers read, or the first of them.
            positions: int64[b], the first position behind the prefix.
            table: angles of at least all positions up to the last action.
        """
        index = torch.arange(self.cfg.horizon, device=positions.device)
        masks = tuple(
            joined_mask(valid, self.cfg.horizon) if as_layer(layer).joined else valid[:, None]
            for layer, valid in zip(self.layers, memory.valid, strict=False)
        )
        behind = table.of_each(positions[:, None] + index)
        return Surroundings(behind, table.at(index), masks)

    def embed(self, x: Tensor, time: Tensor) -> Tensor:
        """float[b, H, A], float[width] -> float[b, H, width]: the actions' tokens at that time."""
        actions = self.action_in_proj(x)
        both = torch.cat([actions, time.expand_as(actions)], dim=-1)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))

    def run(self, tokens: Tensor, memory: Memory, around: Surroundings) -> list[Tensor]:
        """The stream float[b, H, width] behind every layer."""
        states = []
        x = tokens
        for layer, read, mask in zip(self.layers, memory.layers, around.masks, strict=True):
            x = layer(x, read, around.of(layer), mask)
            states.append(x)
        return states

    def decode(self, x: Tensor) -> Tensor:
        """float[b, H, width] -> the velocity float[b, H, A]."""
        return self.action_out_proj(self.norm(x))

    def velocity(
        self,
        memory: Memory,
        around: Surroundings,
        times: Tensor,
        recompute: Iterable[int] | None = None,
    ) -> Velocity:
        """The field for one sample.

        Args:
            memory: what the layers read.
            around: `surroundings` of it.
            times: `time_table` of the steps.
            recompute: numbers of the steps that run the layers; the others add what the last of
                these added.
        """
        cache: StepCache[Tensor] = StepCache(recompute)

        def at(x: Tensor, step: int) -> Tensor:
            tokens = self.embed(x, times[step])
            if recompute is None:
                return self.decode(self.run(tokens, memory, around)[-1])
            added = cache.at(step, lambda: self.run(tokens, memory, around)[-1] - tokens)
            return self.decode(tokens + added)

        return at

    def looked(self, tokens: Tensor, memory: Memory, around: Surroundings) -> Tensor:
        """What the first layer that sees the prefix alone looks at: float32[b, heads, H, n].

        `memory` and `around` need to reach as far as that layer.
        """
        x = tokens
        for layer, read, mask in zip(self.layers, memory.layers, around.masks, strict=False):
            if not as_layer(layer).joined:
                return as_layer(layer).looks_at(x, read, around.first, mask)
            x = layer(x, read, around.of(layer), mask)
        raise AssertionError("a plan by the expert's attention keeps such a layer")


def joined_mask(valid: Tensor, rows: int) -> Tensor:
    """bool[b, n] of the prefix's rows -> bool[b, rows, n + rows]: those, and earlier actions."""
    index = torch.arange(rows, device=valid.device)
    causal = (index[:, None] >= index).expand(len(valid), -1, -1)
    return torch.cat([valid[:, None].expand(-1, rows, -1), causal], dim=2)


def as_layer(module: nn.Module) -> ExpertLayer:
    """The same module, for the type checker."""
    assert isinstance(module, ExpertLayer)
    return module
