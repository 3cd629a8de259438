"""Several sentences about one picture in one pass: the training-time forward that shares the visual
prefix.

Under the causal mask nothing left of a sentence depends on it, so BOS, the visual tokens and the
template's common beginning are computed once and every sentence attends to them and to itself. With
all tokens and layers kept this equals the deployed forward, sentence by sentence (tested). Tokens
and layers may be dropped at random: what a policy has learned to do without can be trimmed later.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.nn.llama import Decoder, DecoderLayer, rotary, rotate


def shared_prefix(ids: Tensor) -> int:
    """How many leading ids all prompts int64[..., L] have in common (at least 1: BOS)."""
    rows = ids.flatten(0, -2)
    same = (rows == rows[:1]).all(dim=0).long().cumprod(0)
    return max(1, int(same.sum()))


def packed_mask(prefix: int, sentences: int, length: int, device: torch.device) -> Tensor:
    """bool[n, n]: causal, and blind between different sentences. n = prefix + sentences *
    length.
    """
    n = prefix + sentences * length
    place = torch.arange(n, device=device)
    block = torch.where(place < prefix, -1, (place - prefix) // length)
    causal = place[:, None] >= place[None, :]
    return causal & ((block[None, :] == -1) | (block[:, None] == block[None, :]))


def packed_states(
    decoder: Decoder,
    visual: Tensor,
    ids: Tensor,
    *,
    keep: Tensor | None = None,
    skip: frozenset[int] = frozenset(),
    pointer: int = 0,
    thin: tuple[int, Tensor] | None = None,
    common: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Final states of the tokens that each of k sentences has for itself.

    Args:
        decoder: the language model.
        visual: float[b, P, D].
        ids: int64[b, k, L], BOS first.
        keep: int64[P'], raster indices of the visual tokens to keep, ascending (default: all).
        skip: indices of layers that are left out.
        pointer: index of a layer whose first head's scores are wanted; before `thin` drops
            anything.
        thin: at the input of which layer further visual tokens are dropped, and which stay:
            int64[P''], ascending places among the kept ones (default: none are).
        common: leading ids that count as shared (default: all that are).

    Returns:
        float[b, k, L - c, D], after the final norm; c = `shared_prefix(ids)`, so the row of id j is
        j - c; and the scores float[b, k, L - c, P'] of these tokens for the kept visual tokens.
    """
    k = ids.shape[1]
    common = shared_prefix(ids) if common is None else common
    kept = torch.arange(visual.shape[1], device=ids.device) if keep is None else keep
    text = decoder.embed_tokens(ids[:, 0, :common])
    own = decoder.embed_tokens(ids[:, :, common:])
    length = own.shape[2]
    prefix = common + len(kept)
    x = torch.cat(
        [text[:, :1], visual[:, kept].to(text.dtype), text[:, 1:], own.flatten(1, 2)], dim=1
    )
    positions = packed_positions(kept, visual.shape[1], common, k, length)
    cos, sin = rotary(positions, decoder.head_dim, decoder.theta)
    mask = packed_mask(prefix, k, length, ids.device)
    scores = x.new_zeros(0)
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        if thin is not None and index == thin[0]:
            rest = torch.arange(1 + len(kept), x.shape[1], device=x.device)
            stay = torch.cat([thin[1].new_zeros(1), thin[1] + 1, rest])
            x = x[:, stay]
            cos = cos[stay]
            sin = sin[stay]
            prefix = common + len(thin[1])
            mask = packed_mask(prefix, k, length, ids.device)
        if index == pointer:
            scores = first_head_scores(layer, x, cos, sin, prefix=prefix, visual=len(kept))
        if index not in skip:
            x = layer(x, cos, sin, mask)
    return decoder.norm(x[:, prefix:]).unflatten(1, (k, length)), scores.unflatten(1, (k, length))


def first_head_scores(
    layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, *, prefix: int, visual: int
) -> Tensor:
    """A layer's attention scores before softmax, first head, float[b, n - prefix, visual]: text
    rows, visual tokens.
    """
    x = layer.input_layernorm(x)
    width = cos.shape[-1]
    attention = layer.self_attn
    q, k = (
        nn.functional.linear(x, proj.weight[:width])
        for proj in (attention.q_proj, attention.k_proj)
    )
    q = rotate(q, cos, sin)[:, prefix:]
    k = rotate(k, cos, sin)[:, 1 : 1 + visual]
    return q @ k.transpose(-2, -1) * width**-0.5


def take_last(states: Tensor, last: Tensor, common: int) -> Tensor:
    """Of states float[b, k, L - c, D] those at EOS, float[b, k, D]; `last` int64[b, k] is its index
    in the ids.
    """
    rows = (last - common)[..., None, None].expand(*last.shape, 1, states.shape[-1])
    return states.gather(2, rows).squeeze(2)


def packed_positions(
    kept: Tensor, patches: int, common: int, sentences: int, length: int
) -> Tensor:
    """Where each packed token stands in its own unpacked sequence, int64[n]."""
    start = torch.arange(1, common, device=kept.device) + patches
    own = torch.arange(length, device=kept.device) + patches + common
    return torch.cat([kept.new_zeros(1), kept + 1, start, own.repeat(sentences)])
