"""DB-CogACT's stages: as CogACT's, but the vision stage takes the images of all cameras.

    images -> vision -> visual; visual, input_ids, last -> language -> cognition; cognition, noise
    -> action -> actions

`input_ids` are the prompt behind the image: what is before it is folded into the language stage.
Knows no file format and no backend.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.cogact import stages as cogact
from trimvla.policies.dbcogact.config import DbCogActConfig
from trimvla.policies.dbcogact.model import DbCogAct
from trimvla.policies.stage import Stage
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()


class VisionStage(nn.Module):
    """Images of all cameras to visual tokens, camera after camera."""

    def __init__(self, policy: DbCogAct) -> None:
        super().__init__()
        self.vision = policy.vision

    def forward(self, images: Tensor) -> Tensor:
        """uint8[C, S, S, 3] -> float[1, P, D]."""
        return self.vision(images)


VISION = Stage("vision", VisionStage, ("images",), ("visual",), 1e-4)


def stages(cfg: DbCogActConfig, plan: Plan = DENSE, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy under a plan; `guided` with the optional one."""
    _, *others = cogact.stages(cfg, plan, guided)  # pyright: ignore[reportArgumentType]
    return (VISION, *others)


def tensor_specs(cfg: DbCogActConfig, plan: Plan = DENSE) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    specs = cogact.tensor_specs(cfg, plan)  # pyright: ignore[reportArgumentType]
    del specs["image"]
    side = cfg.image_size
    return {"images": TensorSpec("images", "uint8", (len(cfg.cameras), side, side, 3)), **specs}


def example_inputs(
    cfg: DbCogActConfig, plan: Plan, bucket: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random images, a prompt of this bucket's length and noise, by tensor name.

    Images are coarse blocks under fine noise, so that low and high frequencies are excited.
    """
    side = cfg.image_size
    cameras = len(cfg.cameras)
    block = -(-side // 4)
    coarse = torch.rand(cameras, 4, 4, 3, generator=generator)
    coarse = coarse.repeat_interleave(block, 1)[:, :side].repeat_interleave(block, 2)[:, :, :side]
    fine = torch.rand(cameras, side, side, 3, generator=generator)
    ids = torch.randint(cfg.language.vocab, (1, bucket), generator=generator)
    last = int(torch.randint(bucket // 2, bucket, (1,), generator=generator))
    ids[:, last] = cfg.prompt.end_id
    ids[:, last + 1 :] = cfg.prompt.pad_id
    return {
        "images": (255 * (0.8 * coarse + 0.2 * fine)).to(torch.uint8),
        "input_ids": ids,
        "last": torch.tensor([last]),
        "noise": torch.randn(1, cfg.head.horizon, cfg.head.action_dim, generator=generator),
    }
