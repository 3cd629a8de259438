"""Weights of a policy that saw the whole image, as a beginning for one that sees a window of it.

The patches' filters are stretched to the new patch, and what a patch has learned for its place is
taken from where that place lay in the whole image. The rest is the same. It is a beginning, not
the same policy: things are larger in the window. Knows weights; knows no image.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig

Shares = tuple[float, float, float, float]
"""Left, top, width and height of a window, in shares of the image's sides."""


def start_in_window(policy: CogAct, cfg: PolicyConfig, window: Shares) -> CogAct:
    """A policy of `cfg`, which sees a window: this one, regridded where its patches are others."""
    return policy if policy.cfg.vision == cfg.vision else regrid(policy, cfg, window)


def regrid(policy: CogAct, cfg: PolicyConfig, window: Shares) -> CogAct:
    """A policy of `cfg` that begins with the weights of one that saw the whole image."""
    state = policy.state_dict()
    for name, value in state.items():
        if name.endswith("patch_embed.proj.weight"):
            state[name] = stretch_filters(value, cfg.vision[0].patch_size)
        elif name.endswith(("pos_embed", "visual_position")):
            state[name] = move_places(value, window)
    started = CogAct(cfg)
    started.load_state_dict(state)
    return started.eval()


def stretch_filters(weight: Tensor, patch: int) -> Tensor:
    """float[D, 3 * p * p] -> float[D, 3 * patch * patch] with the same output for an even patch."""
    side = math.isqrt(weight.shape[1] // 3)
    filters = weight.unflatten(1, (3, side, side))
    fine = filters.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    stretched = nn.functional.avg_pool2d(fine, side)
    return stretched.flatten(1) * (side / patch) ** 2


def move_places(value: Tensor, window: Shares) -> Tensor:
    """float[1, P, D] over the whole image -> the same over the window, between patches straight.

    Beyond the outermost centres of patches the outermost value stands.
    """
    left, top, width, height = window
    side = math.isqrt(value.shape[1])
    centres = (value.new_tensor(range(side)) + 0.5) / side
    x = (2 * (left + width * centres) - 1).expand(side, side)
    y = (2 * (top + height * centres) - 1)[:, None].expand(side, side)
    grid = value.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    points = value.new_zeros(1, side, side, 2)
    points[..., 0] = x
    points[..., 1] = y
    moved = nn.functional.grid_sample(grid, points, padding_mode="border", align_corners=False)
    return moved.flatten(2).transpose(1, 2).contiguous()
