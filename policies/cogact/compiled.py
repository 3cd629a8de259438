"""A policy whose transformer blocks are compiled by torch: one compilation a kind and shape of
block, not one a layer.

Whole stages take minutes to compile at 7 B parameters, for the sampler's steps are unrolled; blocks
take seconds, and what is left between them is little. Knows no device and no clock.
"""

from __future__ import annotations

import torch

from trimvla.policies.cogact.fused import Module, shallow
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.dit import DitBlock
from trimvla.policies.nn.llama import DecoderLayer
from trimvla.policies.nn.vision import VitBlock

BLOCKS = (VitBlock, DecoderLayer, DitBlock)
# compilations of one block's code: dense and narrow, all tokens and few, all rows and one
SHAPES = 64


def compile_blocks(policy: CogAct, backend: str = "inductor") -> CogAct:
    """The same policy, dense or trimmed, with blocks compiled by a backend of torch; it shares
    `policy`'s weights.
    """
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return _compile_below(policy, backend)


def _compile_below(module: Module, backend: str) -> Module:
    made = shallow(module)
    if isinstance(made, BLOCKS):
        compiled = torch.compile(made.forward, backend=backend, dynamic=False, fullgraph=True)
        object.__setattr__(made, "forward", compiled)
        return made
    for name, part in module.named_children():
        made._modules[name] = _compile_below(part, backend)
    return made
