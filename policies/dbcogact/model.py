"""The whole policy: CLIP and projector, Qwen2 and the action head, joined.

The text in front of the image never changes: its keys and values are folded into the decoder
(`Decoder.fold`), which then sees the visual tokens first and the rest of the prompt behind them.
Sizes: C cameras, P visual tokens of all of them, D language width, H x A action chunk.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from trimvla.policies.dbcogact.config import DbCogActConfig
from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.clip import ClipVision
from trimvla.policies.nn.diffusion import Known, ddim_sample
from trimvla.policies.nn.dit import Dit
from trimvla.policies.nn.llama import Decoder
from trimvla.runtime.bundle.plan import Plan


class ClipTower(nn.Module):
    """CLIP and the projector; the images of all cameras become one row of visual tokens."""

    def __init__(self, cfg: DbCogActConfig) -> None:
        super().__init__()
        self.encoder = ClipVision(cfg.vision)
        widths = (cfg.vision.width, *cfg.projector.hidden, cfg.language.width)
        maps: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            maps += [nn.Linear(fan_in, fan_out), nn.GELU()]
        self.projector = nn.Sequential(*maps[:-1])

    def project(self, features: Tensor) -> Tensor:
        """float[C, P / C, width] -> float[1, P, D], camera after camera."""
        return self.projector(features).flatten(0, 1)[None]

    def forward(self, images: Tensor) -> Tensor:
        """uint8[C, S, S, 3] of one observation -> float[1, P, D]."""
        return self.project(self.encoder(self.encoder.normalise(images)))


class DbCogAct(nn.Module):
    """A policy of the DB-CogACT shape; `plan` is what is kept of it."""

    def __init__(self, cfg: DbCogActConfig) -> None:
        """Build the modules with torch's default weights; nothing is folded in yet."""
        super().__init__()
        self.cfg = cfg
        self.plan = Plan()
        self.vision = ClipTower(cfg)
        self.language = Decoder(cfg.language, lead=0, cameras=len(cfg.cameras))
        self.head = Dit(cfg.head, condition=cfg.language.width)

    def fold(self) -> None:
        """Fold the text in front of the image into the decoder; once its weights are there."""
        device = self.language.embed_tokens.weight.device
        self.language.fold(torch.tensor([self.cfg.prompt.before_ids], device=device))

    def act(self, cognition: Tensor, noise: Tensor, known: Known | None = None) -> Tensor:
        """float[b, D], float[b, H, A] -> float[b, H, A]: sample by the config and the plan."""
        plan = self.plan
        diffusion = self.cfg.diffusion
        return ddim_sample(
            self.head if plan.recompute is None else CachedDit(self.head, plan.recompute),
            cognition,
            noise,
            train_steps=diffusion.train_steps,
            steps=diffusion.inference_steps if plan.steps is None else plan.steps,
            guidance=plan.guidance_scale(diffusion.guidance),
            known=known,
        )

    def forward(self, images: Tensor, input_ids: Tensor, last: Tensor, noise: Tensor) -> Tensor:
        """One observation to one action chunk.

        Args:
            images: uint8[C, S, S, 3] RGB, already square.
            input_ids: int64[1, L], the prompt behind the image, padded on the right.
            last: int64[1], index of the last id that is not padding.
            noise: float[1, H, A], standard normal.

        Returns:
            float[1, H, A], normalised and not clipped.
        """
        return self.act(self.language.cognition(self.vision(images), input_ids, last), noise)
