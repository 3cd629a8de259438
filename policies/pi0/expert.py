"""The action expert: noisy actions, their time and the prefix's keys and values in, the flow's
velocity out.

Every layer's rows look at the keys of the same layer of the decoder and at each other. pi0 puts the
state's token in front; it sees no action, so its keys and values are the same at every step and are
kept from the first one. All that depends on the time alone is a table (`time_table`), which an
exporter can work out beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.nn.flow import time_embedding
from trimvla.policies.nn.gemma import (
    GATE,
    AdaRmsNorm,
    Angles,
    Heads,
    KeysValues,
    Modulation,
    keys_values,
)
from trimvla.policies.nn.grouped import GatedMlp, GroupedAttention
from trimvla.policies.nn.llama import RmsNorm
from trimvla.policies.pi0.config import Pi0Config

Modulations = tuple[Modulation, Modulation]
"""Of the norm before attention, and of the one before the MLP."""


@dataclass(frozen=True)
class Memory:
    """What the expert looks at besides its own rows.

    `layers` are the keys and values for each of its layers, `valid` bool[b, n] marks those that
    count, `start` int64[b] is the first position behind the whole prefix.
    """

    layers: tuple[KeysValues, ...]
    valid: tuple[Tensor, ...]
    start: Tensor

    def followed_by(self, own: Sequence[KeysValues]) -> Memory:
        """With one more row of keys and values in every layer, at the position `start`."""
        layers = tuple(a.followed_by(b) for a, b in zip(self.layers, own, strict=True))
        valid = tuple(followed_by_valid(mask, 1) for mask in self.valid)
        return Memory(layers, valid, self.start + 1)


def followed_by_valid(valid: Tensor, count: int) -> Tensor:
    """bool[b, n] and so many more keys that count: bool[b, n + count].

    A Concat: TensorRT 10.3 takes no Pad of truth values.
    """
    return torch.cat([valid, valid.new_ones(len(valid), count)], dim=1)


@dataclass(frozen=True)
class LayerOutput:
    """The stream behind a layer, its own keys and values, and what attention and MLP added before
    their gates.
    """

    x: Tensor
    own: KeysValues
    attended: Tensor
    fed: Tensor


@dataclass(frozen=True)
class ExpertPass:
    """All layers' outputs, from the first to the last."""

    layers: tuple[LayerOutput, ...]

    @property
    def x(self) -> Tensor:
        """The stream behind the last layer."""
        return self.layers[-1].x

    @property
    def first_rows(self) -> list[KeysValues]:
        """Keys and values of row 0 in every layer."""
        return [layer.own.first() for layer in self.layers]

    @property
    def increments(self) -> Tensor:
        """float[layers, 2, b, n, width]: what each layer's attention and MLP gave, before gates."""
        return torch.stack([torch.stack([layer.attended, layer.fed]) for layer in self.layers])


class ExpertLayer(nn.Module):
    """One pre-norm layer; `modulated`: its norms take scale, shift and gate from the time."""

    def __init__(self, cfg: Pi0Config, heads: Heads, modulated: bool) -> None:
        super().__init__()
        width = cfg.expert.width
        eps = cfg.language.norm_eps
        norm = AdaRmsNorm if modulated else RmsNorm
        self.input_layernorm: AdaRmsNorm | RmsNorm = norm(width, eps)
        self.self_attn = GroupedAttention(width, heads.queries, heads.keys, heads.dim)
        self.post_attention_layernorm: AdaRmsNorm | RmsNorm = norm(width, eps)
        self.mlp = GatedMlp(width, cfg.expert.mlp_hidden, GATE)

    def forward(
        self,
        x: Tensor,
        memory: KeysValues,
        angles: Angles,
        mask: Tensor,
        modulation: Modulations | None = None,
    ) -> LayerOutput:
        """Run the layer.

        Args:
            x: float[b, n, width].
            memory: m keys and values from outside.
            angles: of the rows' positions.
            mask: bool, broadcast to [b, n, m + n]; True where a row may look.
            modulation: of both norms, where they are modulated.
        """
        before, behind = (None, None) if modulation is None else modulation
        normed = normalise(self.input_layernorm, x, before)
        own = keys_values(self.self_attn, normed, angles)
        q = self.self_attn.queries(normed, angles.cos, angles.sin)
        seen = memory.followed_by(own)
        attended = self.self_attn.mix(q, seen.keys, seen.values, mask)
        x = x + gated(attended, before)
        fed = self.mlp(normalise(self.post_attention_layernorm, x, behind))
        return LayerOutput(x + gated(fed, behind), own, attended, fed)


def normalise(norm: nn.Module, x: Tensor, modulation: Modulation | None) -> Tensor:
    """Apply a norm, modulated where it is."""
    return norm(x) if modulation is None else norm(x, modulation)


def gated(increment: Tensor, modulation: Modulation | None) -> Tensor:
    """What reaches the stream of what attention or the MLP gave."""
    return increment if modulation is None else increment * modulation.gate


class Expert(nn.Module):
    """Embedding of state, actions and time, the layers, the final norm and the map to a
    velocity.
    """

    def __init__(self, cfg: Pi0Config) -> None:
        super().__init__()
        language = cfg.language
        width = cfg.expert.width
        self.flow = cfg.flow
        self.head_dim = language.head_dim
        self.theta = language.rope_theta
        self.modulated = not cfg.has_state_token
        heads = Heads(language.heads, language.kv_heads, language.head_dim)
        self.action_in_proj = nn.Linear(cfg.padded_action_dim, width)
        self.action_out_proj = nn.Linear(width, cfg.padded_action_dim)
        self.state_proj = nn.Linear(cfg.padded_state_dim, width) if cfg.has_state_token else None
        # pi0's file holds one matrix over [actions, time]; only the actions' half changes within a
        # step
        self.action_mix = None if self.modulated else nn.Linear(width, width, bias=False)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            ExpertLayer(cfg, heads, self.modulated) for _ in range(language.layers)
        )
        self.norm = (AdaRmsNorm if self.modulated else RmsNorm)(width, language.norm_eps)

    # --- the time ---

    def embed_time(self, times: Sequence[float]) -> Tensor:
        """Of n times: float[n, width]."""
        flow = self.flow
        weight = self.time_mlp_in.weight
        made = time_embedding(times, len(weight), flow.min_period, flow.max_period)
        return made.to(weight)

    def condition(self, times: Sequence[float]) -> Tensor:
        """What modulates the norms at n times (pi0.5): float[n, width]."""
        return F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(self.embed_time(times)))))

    def time_table(self, times: Sequence[float]) -> Tensor:
        """All that n times give.

        pi0: float[n, width], what they add inside `time_mlp_in`. pi0.5: float[n, 2 * layers + 1, 3,
        width], scale, shift and gate of every norm, the final one last.
        """
        if not self.modulated:
            return self.time_mlp_in(self.embed_time(times))
        condition = self.condition(times)
        return torch.stack([norm.modulation(condition) for norm in self.norms], dim=1)

    @property
    def norms(self) -> list[AdaRmsNorm]:
        """The modulated norms in the order of `time_table`."""
        found = [module for module in self.modules() if isinstance(module, AdaRmsNorm)]
        return [norm for norm in found if norm is not self.norm] + [self.norm]  # pyright: ignore[reportReturnType]

    def modulation(self, time: Tensor, layer: int) -> Modulations | None:
        """Of a layer's norms, from one step's part of `time_table`."""
        if not self.modulated:
            return None
        return Modulation(*time[2 * layer]), Modulation(*time[2 * layer + 1])

    def final_modulation(self, time: Tensor) -> Modulation | None:
        """Of the final norm."""
        return Modulation(*time[-1]) if self.modulated else None

    # --- one step ---

    def embed(self, x: Tensor, time: Tensor) -> Tensor:
        """float[b, H, A] and one step's part of `time_table` -> float[b, H, width]."""
        actions = self.action_in_proj(x.to(self.action_in_proj.weight.dtype))
        if self.action_mix is None:
            return actions
        return self.time_mlp_out(F.silu(self.action_mix(actions) + time))

    def state_token(self, state: Tensor) -> Tensor:
        """float[b, padded state] -> float[b, 1, width]."""
        assert self.state_proj is not None
        return self.state_proj(state.to(self.state_proj.weight.dtype))[:, None]

    def run(
        self, x: Tensor, memory: Memory, time: Tensor, *, state_first: bool = False
    ) -> ExpertPass:
        """Run the layers over float[b, n, width]; `state_first`: row 0 is the state's and sees
        itself alone.
        """
        n = x.shape[1]
        positions = memory.start[:, None] + torch.arange(n, device=x.device)
        angles = Angles.of(positions, self.head_dim, self.theta)
        outputs: list[LayerOutput] = []
        for index, layer in enumerate(self.layers):
            mask = self.mask(memory.valid[index], n, state_first)
            output = layer(x, memory.layers[index], angles, mask, self.modulation(time, index))
            outputs.append(output)
            x = output.x
        return ExpertPass(tuple(outputs))

    @staticmethod
    def mask(valid: Tensor, n: int, state_first: bool) -> Tensor:
        """bool[b, 1 or n, m + n] of bool[b, m] keys that count."""
        if not state_first:
            return followed_by_valid(valid, n)[:, None]
        own = torch.ones(n, n, dtype=torch.bool, device=valid.device)
        own[0, 1:] = False
        return torch.cat([valid[:, None].expand(-1, n, -1), own.expand(len(valid), -1, -1)], dim=2)

    def regate(self, increments: Tensor, time: Tensor) -> Tensor:
        """What reaches the stream of `ExpertPass.increments` under the gates of a time: float[b, H,
        width].
        """
        gates = time[:-1, 2].unflatten(0, (-1, 2))
        return (increments * gates[:, :, None, None]).sum(dim=(0, 1))

    def decode(self, x: Tensor, modulation: Modulation | None) -> Tensor:
        """The final norm and the map back: float[b, H, width] -> float[b, H, A]."""
        return self.action_out_proj(normalise(self.norm, x, modulation))
