"""CLIP's vision transformer up to its feature layer, as Hugging Face stores it.

A class token in front, learned positions, a norm before the first layer, none after the last; the
class token is cut off at the end. Its layers are SigLIP's. Module names are those of its
checkpoints. Knows no projector and no language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.nn.siglip import SiglipBlock
from trimvla.policies.nn.vision import PatchEmbed, standardise
from trimvla.policies.sizes.config import VitConfig


class ClipVision(nn.Module):
    """The encoder: patch tokens of its feature layer."""

    def __init__(self, cfg: VitConfig) -> None:
        super().__init__()
        self.mean = cfg.mean
        self.std = cfg.std
        self.patch_embedding = PatchEmbed(cfg.patch_size, cfg.width, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(cfg.width))
        self.position_embedding = nn.Embedding(1 + cfg.patches, cfg.width)
        self.pre_layrnorm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.layers = nn.ModuleList(SiglipBlock(cfg) for _ in range(cfg.feature_block + 1))

    def normalise(self, image: Tensor) -> Tensor:
        """uint8[b, S, S, 3] RGB -> float[b, 3, S, S], standardised."""
        return standardise(image, self.mean, self.std)

    def embed(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S] -> float[b, 1 + P, width]: class token and patches, with positions."""
        patches = self.patch_embedding(pixels)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight

    def states(self, pixels: Tensor) -> list[Tensor]:
        """float[b, 3, S, S] -> every layer's output, float[b, 1 + P, width] each."""
        x = self.pre_layrnorm(self.embed(pixels))
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return states

    def forward(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S] -> float[b, P, width]: the feature layer's patch tokens."""
        x = self.pre_layrnorm(self.embed(pixels))
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]
