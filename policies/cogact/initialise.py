"""Initial weights for training a policy from scratch.

Linear maps keep the variance (Xavier), residual branches start small by depth, positions start as
sines and cosines, and the head starts by predicting zero (DiT). Nothing here runs when a checkpoint
loads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.dit import Dit
from trimvla.policies.nn.llama import Decoder
from trimvla.policies.nn.vision import VisionTower, Vit

TOKEN_STD = 0.02
# of the visual tokens' size, so that words are not drowned by what attention adds
EMBEDDING_STD = 0.5


@torch.no_grad()
def initialise(policy: CogAct) -> CogAct:
    """Give every parameter of the policy its starting value, in place; draws from torch's global
    generator.
    """
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            _linear(module)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=EMBEDDING_STD)
    _tower(policy.vision)
    _decoder(policy.language)
    _head(policy.head)
    return policy


def sincos_grid(patches: int, width: int) -> Tensor:
    """float[patches, width]: two-dimensional sines and cosines of a square grid, in raster order.

    Half of the channels carry the row, half the column (MAE, arXiv 2111.06377).
    """
    side = math.isqrt(patches)
    rates = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side).float()[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = line.repeat_interleave(side, dim=0)
    columns = line.repeat(side, 1)
    return torch.cat([rows, columns], dim=-1)


def _linear(module: nn.Linear) -> None:
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _tower(tower: VisionTower) -> None:
    for vit in tower.encoders:
        assert isinstance(vit, Vit)
        vit.pos_embed.copy_(sincos_grid(*vit.pos_embed.shape[1:]))
        for token in (vit.cls_token, vit.reg_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=TOKEN_STD)
    if tower.visual_position is not None:
        tower.visual_position.copy_(sincos_grid(*tower.visual_position.shape[1:]))


def _decoder(decoder: Decoder) -> None:
    """Each of the 2 n residual branches starts at 1 / sqrt(2 n): the stream's variance does not
    grow with depth.
    """
    scale = (2 * len(decoder.layers)) ** -0.5
    for name, parameter in decoder.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.mul_(scale)


def _head(head: Dit) -> None:
    nn.init.trunc_normal_(
        head.positional_embedding, std=head.positional_embedding.shape[-1] ** -0.5
    )
    nn.init.trunc_normal_(head.uncondition, std=TOKEN_STD)
    nn.init.zeros_(head.final_layer.linear.weight)
