"""Cognition features of several instructions about one image, with gradients, for any plan.

As the deployed forward, sentence by sentence (tested). What does not depend on the instruction is
computed once: the packed prefix (`training.packed`), as long as all sentences keep the same visual
tokens; from the layer on where a selector looks at the instruction, each goes its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimvla.policies.nn.llama import Decoder, rotary
from trimvla.policies.training.packed import (
    packed_mask,
    packed_positions,
    shared_prefix,
    take_last,
)
from trimvla.policies.trimming.tokens import Seen, select
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder

FIXED = ("uniform", "random")
"""Selectors that keep the same places whatever is seen and asked."""


@dataclass(frozen=True)
class _Packed:
    """Several sentences behind one prefix, as they enter a layer."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    prefix: int
    common: int
    length: int


def cognition_features(
    decoder: Decoder, visual: Tensor, input_ids: Tensor, last: Tensor, patches: int
) -> Tensor:
    """The cognition feature of each of k sentences.

    Args:
        decoder: of the dense policy or one under a plan, with nothing folded in.
        visual: float[b, K, D], the visual tokens that its encoders give.
        input_ids: int64[b, k, L], BOS first, padded on the right.
        last: int64[b, k], index of EOS.
        patches: visual tokens of the whole image, before any leaves.

    Returns:
        float[b, k, D], after the final norm.
    """
    tokens = decoder.tokens if isinstance(decoder, TrimmedDecoder) else None
    seen = decoder.seen if isinstance(decoder, TrimmedDecoder) else None
    packed = _pack(decoder, visual, input_ids, last, seen=seen, patches=patches)
    if tokens is None:
        return _finish(decoder, _run(decoder, packed, 0, len(decoder.layers)), last)
    if tokens.selector in FIXED:
        packed = _run(decoder, packed, 0, tokens.after)
        stay = select(tokens, Seen(visual[:1], None, decoder.cameras, seen, patches))[0]
        packed = _drop(packed, stay, visual.shape[1])
        return _finish(decoder, _run(decoder, packed, tokens.after, len(decoder.layers)), last)
    assert isinstance(decoder, TrimmedDecoder)
    packed = _run(decoder, packed, 0, tokens.after - 1)
    x = _unpack(packed, input_ids.shape[1])
    ends = last.flatten()
    around = visual.repeat_interleave(input_ids.shape[1], dim=0)
    x, looked = decoder.look(x, decoder.context(x), around, ends)
    z = decoder.finish(x, select(tokens, looked), input_ids.shape[2], ends)
    return z.unflatten(0, last.shape)


def _pack(
    decoder: Decoder,
    visual: Tensor,
    ids: Tensor,
    last: Tensor,
    *,
    seen: tuple[int, ...] | None,
    patches: int,
) -> _Packed:
    """BOS, visual tokens, the sentences' common beginning, and what each has for itself."""
    count = ids.shape[1]
    common = min(shared_prefix(ids), int(last.min()))  # every sentence keeps its own EOS
    kept = torch.arange(patches) if seen is None else torch.tensor(seen)
    text = decoder.embed_tokens(ids[:, 0, :common])
    own = decoder.embed_tokens(ids[:, :, common:])
    length = own.shape[2]
    x = torch.cat([text[:, :1], visual.to(text.dtype), text[:, 1:], own.flatten(1, 2)], dim=1)
    places = packed_positions(kept.to(ids.device), patches, common, count, length)
    cos, sin = rotary(places, decoder.head_dim, decoder.theta)
    prefix = common + visual.shape[1]
    mask = packed_mask(prefix, count, length, ids.device)
    return _Packed(x, cos, sin, mask, prefix, common, length)


def _run(decoder: Decoder, packed: _Packed, first: int, end: int) -> _Packed:
    x = packed.x
    for layer in decoder.layers[first:end]:
        x = layer(x, packed.cos, packed.sin, packed.mask)
    return _Packed(
        x, packed.cos, packed.sin, packed.mask, packed.prefix, packed.common, packed.length
    )


def _drop(packed: _Packed, stay: Tensor, visual: int) -> _Packed:
    """Only the visual tokens at these places go on."""
    rest = torch.arange(1 + visual, packed.x.shape[1], device=packed.x.device)
    rows = torch.cat([stay.new_zeros(1), stay + 1, rest])
    return _Packed(
        packed.x[:, rows],
        packed.cos[rows],
        packed.sin[rows],
        packed.mask[rows][:, rows],
        packed.prefix - visual + len(stay),
        packed.common,
        packed.length,
    )


def _unpack(packed: _Packed, count: int) -> Tensor:
    """Every sentence behind a copy of the prefix: float[b * k, K + L, D]."""
    before = packed.x[:, : packed.prefix].repeat_interleave(count, dim=0)
    own = packed.x[:, packed.prefix :].unflatten(1, (count, packed.length)).flatten(0, 1)
    return torch.cat([before, own], dim=1)


def _finish(decoder: Decoder, packed: _Packed, last: Tensor) -> Tensor:
    own = packed.x[:, packed.prefix :].unflatten(1, (last.shape[1], packed.length))
    return decoder.norm(take_last(own, last, packed.common))
