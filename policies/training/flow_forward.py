"""Training-time forward of a pi0 policy, with layers and visual tokens left out.

With everything kept this equals the deployed forward (tested). Visual tokens leave at the input of
a decoder layer; a layer that is left out is left out of the decoder and of the expert. Every
decoder layer's states are there for losses of their own. Knows modules; knows no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trimvla.policies.nn.gemma import Angles, GemmaLayer, KeysValues
from trimvla.policies.pi0.expert import Expert, ExpertLayer
from trimvla.policies.pi0.prefix import Prefix, Rows, keep_rows

Layers = dict[int, KeysValues]


@dataclass(frozen=True)
class Dropped:
    """Layers that a pass leaves out; and all visual tokens but `kept` int64[K], from `after` on."""

    layers: frozenset[int] = frozenset()
    after: int = 0
    kept: Tensor | None = None


@dataclass(frozen=True)
class Remembered:
    """What the expert reads, and what losses of the decoder's own look at."""

    layers: Layers
    """Keys and values of every layer that ran."""
    valid: dict[int, Tensor]
    """bool[b, n] for each of them: keys that count."""
    start: int
    """The first position behind the longest prefix; see `lengths`."""
    lengths: Tensor
    """int64[b]: ids of each prompt."""
    states: Tensor
    """float[b, L, D]: the text's rows at the deepest layer's input."""
    scores: Tensor
    """float[b, L, P]: the pointing layer's first head, text rows for those of the first camera's
    tokens that are there."""
    places: Tensor
    """int64[P]: raster indices of those tokens."""


def remember(
    prefix: Prefix,
    visual: Tensor,
    ids: Tensor,
    lengths: Tensor,
    *,
    pointer: int,
    patches: int,
    dropped: Dropped,
) -> Remembered:
    """Run the decoder.

    Args:
        prefix: the dense decoder.
        visual: float[b, V, D], all cameras' tokens.
        ids: int64[b, L], padded on the right.
        lengths: int64[b], ids that are no padding.
        pointer: the layer whose first head points.
        patches: tokens of one camera.
        dropped: what is left out.
    """
    rows = prefix.rows(prefix.embed(visual, ids), lengths, visual.shape[1])
    places = torch.arange(visual.shape[1], device=ids.device)
    layers: Layers = {}
    valid: dict[int, Tensor] = {}
    scores = visual.new_zeros(0)
    pointed = places[:0]
    deepest = len(prefix.layers)
    for index, layer in enumerate(prefix.layers):
        assert isinstance(layer, GemmaLayer)
        if dropped.kept is not None and index == dropped.after:
            rows = keep_rows(rows, dropped.kept.expand(len(ids), -1))
            places = dropped.kept
        if index == pointer:
            first = places < patches
            pointed = places[first]
            scores = first_head(layer, rows)[:, :, : int(first.sum())]
        if index in dropped.layers:
            continue
        x, own = layer(rows.x, rows.angles, rows.valid[:, None])
        rows = replace(rows, x=x)
        layers[index] = own
        valid[index] = rows.valid
    layers[deepest] = prefix.tail(rows.x, rows.angles)
    valid[deepest] = rows.valid
    return Remembered(
        layers, valid, visual.shape[1], lengths, rows.x[:, rows.visual :], scores, pointed
    )


def first_head(layer: GemmaLayer, rows: Rows) -> Tensor:
    """A layer's scores before softmax, first head, text rows for visual ones: float[b, L, V]."""
    normed = layer.input_layernorm(rows.x)
    attend = layer.self_attn
    q = attend.queries(normed[:, rows.visual :], *_angles(rows, rows.visual, None))[:, 0]
    k = attend.keys(normed[:, : rows.visual], *_angles(rows, 0, rows.visual))[:, 0]
    return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


def _angles(rows: Rows, start: int, end: int | None) -> tuple[Tensor, Tensor]:
    part = slice(start, end)
    return rows.angles.cos[:, :, part], rows.angles.sin[:, :, part]


def velocity(
    expert: Expert, memory: Remembered, state: Tensor, x: Tensor, times: Sequence[float]
) -> Tensor:
    """The velocity of several noisy chunks for every prompt.

    Args:
        expert: the dense expert, with a state token.
        memory: of b prompts.
        state: float[b, padded state].
        x: float[b * d, H, A]: d noisy chunks for each prompt, one prompt after the other.
        times: of each of them.

    Returns:
        float[b * d, H, A].
    """
    draws = len(x) // len(state)
    table = expert.time_table(times)
    actions = expert.embed(x, table[:, None])
    tokens = expert.state_token(state).repeat_interleave(draws, 0)
    rows = torch.cat([tokens, actions], dim=1)
    n = rows.shape[1]
    start = (memory.start + memory.lengths).repeat_interleave(draws, 0)
    positions = start[:, None] + torch.arange(n, device=x.device)
    angles = Angles.of(positions, expert.head_dim, expert.theta)
    own = torch.ones(n, n, dtype=torch.bool, device=x.device)
    own[0, 1:] = False
    for index, layer in enumerate(expert.layers):
        if index not in memory.layers:
            continue
        assert isinstance(layer, ExpertLayer)
        seen = memory.layers[index]
        repeated = KeysValues(
            seen.keys.repeat_interleave(draws, 0), seen.values.repeat_interleave(draws, 0)
        )
        valid = memory.valid[index].expand(len(state), -1).repeat_interleave(draws, 0)
        mask = torch.cat([valid[:, None].expand(-1, n, -1), own.expand(len(x), -1, -1)], dim=2)
        rows = layer(rows, repeated, angles, mask).x
    return expert.decode(rows[:, 1:], None)


def pointer_loss(
    memory: Remembered, nouns: Tensor, points: Tensor, patches: int, sigma: float
) -> Tensor:
    """Cross entropy between where nouns (and adjectives before them) look and where things are.

    Args:
        memory: its `scores` and `places`.
        nouns: int64[b, 2], where object and target are named in the ids.
        points: float[b, 2, 2], where they are in the first camera's picture (x, y in 0..1).
        patches: of one picture, a square.
        sigma: of the wanted distribution [patches].
    """
    side = round(patches**0.5)
    place = memory.places
    centre = torch.stack([place % side, place // side], dim=-1) + 0.5
    distance = (points[:, :, None] * side - centre).square().sum(-1)
    truth = torch.softmax(-distance / (2 * sigma**2), dim=-1)
    rows = torch.cat([nouns, nouns - 1], dim=1)
    looks = memory.scores.gather(1, rows[..., None].expand(-1, -1, len(place)))
    return -(torch.cat([truth, truth], dim=1) * F.log_softmax(looks, dim=-1)).sum(-1).mean()
