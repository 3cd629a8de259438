"""The decoder's projections fused for a GPU: queries, keys and values in one product, gate and up
in another.

The fused matrices hold the weights; the separate ones become views of them, so that the plain
policy and its fused twin exist at once in the memory of one. Values do not change, only the number
of kernels. Knows no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.attention import split_heads
from trimvla.policies.nn.llama import (
    DecoderAttention,
    DecoderLayer,
    Past,
    SwiGlu,
    angles_at,
    rotate,
    take_row,
)

Module = TypeVar("Module", bound=nn.Module)


def fuse(policy: CogAct) -> CogAct:
    """The same policy, dense or trimmed, with fused projections; it shares all its weights with
    `policy`.
    """
    made = shallow(policy)
    language = shallow(policy.language)
    language.layers = nn.ModuleList(_fuse_layer(layer) for layer in policy.language.layers)
    made.language = language
    return made


def shallow(module: Module) -> Module:
    """A copy with the same parts, whose parts can be replaced."""
    made = copy(module)
    made._modules = module._modules.copy()
    return made


def _fuse_layer(module: nn.Module) -> DecoderLayer:
    assert isinstance(module, DecoderLayer)
    made = shallow(module)
    made.self_attn = FusedAttention(module.self_attn)
    made.mlp = FusedSwiGlu(module.mlp)
    return made


def join_rows(*linears: nn.Linear) -> nn.Parameter:
    """One matrix of all rows; the given ones become views of it.

    Made once: joining the same again finds it.
    """
    weights = [linear.weight.detach() for linear in linears]
    joined = _side_by_side(weights)
    if joined is None:
        joined = torch.cat(weights)
        for linear, rows in zip(
            linears, joined.split([len(weight) for weight in weights]), strict=True
        ):
            linear.weight = nn.Parameter(rows, requires_grad=False)
    return nn.Parameter(joined, requires_grad=False)


def _side_by_side(weights: Sequence[Tensor]) -> Tensor | None:
    """The matrix whose rows these are, if they lie in one memory one after the other and fill
    it.
    """
    first = weights[0]
    width = weights[0].shape[1]
    starts = list(accumulate((weight.numel() for weight in weights), initial=0))
    memory = first.untyped_storage()
    same = {weight.untyped_storage().data_ptr() for weight in weights} == {memory.data_ptr()}
    if not same or [weight.storage_offset() for weight in weights] != starts[:-1]:
        return None
    return first.as_strided((starts[-1] // width, width), (width, 1))


class FusedAttention(DecoderAttention):
    """See `DecoderAttention`; queries, keys and values come from one product where all rows are
    wanted.
    """

    def __init__(self, plain: DecoderAttention) -> None:
        """Share the weights of `plain`."""
        nn.Module.__init__(self)
        self.heads = plain.heads
        self.kv_heads = plain.kv_heads
        self.qkv = join_rows(plain.q_proj, plain.k_proj, plain.v_proj)
        self.q_proj = plain.q_proj
        self.k_proj = plain.k_proj
        self.v_proj = plain.v_proj
        self.o_proj = plain.o_proj

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
        """See `DecoderLayer.forward`; nothing may be folded in."""
        assert past is None
        if row is not None:
            width = self.q_proj.out_features
            k, v = (
                split_heads(part, self.heads)
                for part in F.linear(x, self.qkv[width:]).chunk(2, dim=-1)
            )
            q = self.queries(take_row(x, row), angles_at(cos, row), angles_at(sin, row))
            return self.mix(q, rotate(k, cos, sin), v, mask[row][:, None, None])
        q, k, v = (split_heads(part, self.heads) for part in F.linear(x, self.qkv).chunk(3, dim=-1))
        return self.mix(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)


class FusedSwiGlu(SwiGlu):
    """See `SwiGlu`; gate and up come from one product."""

    def __init__(self, plain: SwiGlu) -> None:
        """Share the weights of `plain`."""
        nn.Module.__init__(self)
        self.gate_up = join_rows(plain.gate_proj, plain.up_proj)
        self.gate_proj = plain.gate_proj
        self.up_proj = plain.up_proj
        self.down_proj = plain.down_proj

    def channels(self, x: Tensor) -> Tensor:
        """See `SwiGlu.channels`."""
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)
        return F.silu(gate) * up
