"""The stages of ACT: one row each, with what crosses its border. Batch is always 1.

    images -> vision -> visual; visual, state -> action -> actions

Vision is most of the time and the same for every plan; the transformer is the rest. Knows no file
format and no backend.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.act.config import ActConfig
from trimvla.policies.act.model import Act
from trimvla.policies.stage import Stage
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

DENSE = Plan()
TOLERANCE = 1e-4


class VisionStage(nn.Module):
    """Images of all cameras to image tokens."""

    def __init__(self, policy: Act) -> None:
        super().__init__()
        self.vision = policy.vision

    def forward(self, images: Tensor) -> Tensor:
        """float[C, H, W, 3] from 0 to 1 -> float[V, D]."""
        return self.vision(images)


class ActionStage(nn.Module):
    """Image tokens and state to actions."""

    def __init__(self, policy: Act) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, visual: Tensor, state: Tensor | None = None) -> Tensor:
        """float[V, D], float[1, S + E] -> float[1, H, A], normalised."""
        return self.policy.act(visual, state)


def stages(cfg: ActConfig, plan: Plan = DENSE, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy under a plan. ConfigError for `guided`: there is no sampler."""
    del plan
    if guided:
        words = "it draws no noise, and has no sampler that could be guided"
        raise ConfigError(f"expected no 'guided' for policy '{cfg.name}': {words}")
    read = ("visual", "state") if cfg.read_dim else ("visual",)
    return (
        Stage("vision", VisionStage, ("images",), ("visual",), TOLERANCE),
        Stage("action", ActionStage, read, ("actions",), TOLERANCE),
    )


def tensor_specs(cfg: ActConfig, plan: Plan = DENSE) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    del plan
    images = (len(cfg.cameras), cfg.image_height, cfg.image_width, 3)
    specs = [
        TensorSpec("images", "float32", images),
        TensorSpec("visual", "float32", (cfg.visual_tokens, cfg.width)),
        TensorSpec("actions", "float32", (1, cfg.horizon, cfg.action_dim)),
    ]
    if cfg.read_dim:
        specs.append(TensorSpec("state", "float32", (1, cfg.read_dim)))
    return {spec.name: spec for spec in specs}


def example_inputs(
    cfg: ActConfig, plan: Plan, bucket: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random images and state, by tensor name.

    Images are coarse blocks under fine noise, so that both low and high frequencies are excited.
    """
    del plan, bucket
    count = len(cfg.cameras)
    height = cfg.image_height
    width = cfg.image_width
    coarse = torch.rand(count, 4, 4, 3, generator=generator)
    coarse = coarse.repeat_interleave(-(-height // 4), 1)[:, :height]
    coarse = coarse.repeat_interleave(-(-width // 4), 2)[:, :, :width]
    fine = torch.rand(count, height, width, 3, generator=generator)
    made = {"images": 0.8 * coarse + 0.2 * fine}
    if cfg.read_dim:
        made["state"] = torch.randn(1, cfg.read_dim, generator=generator)
    return made
