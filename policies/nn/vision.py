"""Vision: images to visual tokens in the language model's width.

The ViTs (DINOv2 with registers, SigLIP, or a small one of our own) run only the blocks up to the
feature block: what the public code computes after it is thrown away, so it is not built. Module
names are timm's. Knows no checkpoint file.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import Mlp, SelfAttention
from trimvla.policies.sizes.config import PolicyConfig, VitConfig


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (DINOv2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """float[..., width] -> float[..., width]."""
        return x * self.gamma


class VitBlock(nn.Module):
    """Pre-norm transformer block, with LayerScale where the encoder has it."""

    def __init__(self, cfg: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.attn = SelfAttention(cfg.width, cfg.heads)
        self.ls1 = LayerScale(cfg.width) if cfg.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.mlp = Mlp(cfg.width, cfg.mlp_hidden, cfg.activation)
        self.ls2 = LayerScale(cfg.width) if cfg.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, n, width]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map: a strided convolution, written as the matrix
    product it is.
    """

    def __init__(self, patch_size: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(3 * patch_size * patch_size, width, bias=bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S] -> float[b, P, width], patches in raster order."""
        b, channels, height, width = pixels.shape
        p = self.patch_size
        grid = pixels.reshape(b, channels, height // p, p, width // p, p)
        return self.proj(
            grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2).to(self.proj.weight.dtype)
        )


class Vit(nn.Module):
    """A vision transformer up to its feature block; patch tokens out, no final norm."""

    def __init__(self, cfg: VitConfig) -> None:
        super().__init__()
        self.prefix = cfg.prefix
        self.mean = cfg.mean
        self.std = cfg.std
        self.patch_embed = PatchEmbed(cfg.patch_size, cfg.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, cfg.patches, cfg.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width)) if cfg.class_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, cfg.registers, cfg.width)) if cfg.registers else None
        )
        self.blocks = nn.ModuleList(VitBlock(cfg) for _ in range(cfg.feature_block + 1))

    def normalise(self, image: Tensor) -> Tensor:
        """uint8[b, S, S, 3] RGB -> float[b, 3, S, S], standardised with this encoder's mean and
        std.
        """
        return standardise(image, self.mean, self.std)

    def embed(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S] -> float[b, P, width]: patches with their positions, before any prefix
        token.
        """
        return self.patch_embed(pixels) + self.pos_embed

    def enter(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S] -> float[b, prefix + P, width]: what the first block gets."""
        patches = self.embed(pixels)
        tokens = [
            t.expand(len(patches), -1, -1)
            for t in (self.cls_token, self.reg_token)
            if t is not None
        ]
        return torch.cat([*tokens, patches], dim=1) if tokens else patches

    def forward(self, pixels: Tensor) -> Tensor:
        """float[b, 3, S, S] -> float[b, P, width]: the feature block's patch tokens."""
        x = self.enter(pixels)
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix :]


def standardise(
    image: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """uint8[b, S, S, 3] RGB -> float[b, 3, S, S]: (image / 255 - mean) / std."""
    scaled = (image.float() / 255.0 - _constants(mean, image)) / _constants(std, image)
    return scaled.permute(0, 3, 1, 2)


def _constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    """float32[n] on another tensor's device; filled there, for a copy from the host ends a CUDA
    graph's capture.
    """
    if like.is_cuda:
        return torch.cat([torch.full((1,), value, device=like.device) for value in values])
    return like.new_tensor(values, dtype=torch.float32)


def build_projector(cfg: PolicyConfig) -> nn.Sequential:
    """Linear, GELU, ..., Linear from the concatenated features to the language width
    (fused-gelu-mlp).
    """
    widths = (cfg.vision_width, *cfg.projector.hidden, cfg.language.width)
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        modules += [nn.Linear(fan_in, fan_out), nn.GELU()]
    return nn.Sequential(*modules[:-1])


class VisionTower(nn.Module):
    """All encoders, concatenated on channels, projected."""

    def __init__(self, cfg: PolicyConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Vit(vit) for vit in cfg.vision)
        self.projector = build_projector(cfg)
        shape = (1, cfg.patches, cfg.language.width)
        self.visual_position = nn.Parameter(torch.zeros(shape)) if cfg.visual_position else None

    def features(self, image: Tensor) -> list[Tensor]:
        """uint8[b, S, S, 3] -> one float[b, P, width_i] per encoder."""
        return [encoder(encoder.normalise(image)) for encoder in self.encoders]  # pyright: ignore[reportCallIssue]

    def project(self, features: list[Tensor]) -> Tensor:
        """One float[b, P, width_i] per encoder -> float[b, P, D]."""
        visual = self.projector(torch.cat(features, dim=-1))
        return visual if self.visual_position is None else visual + self.visual_position

    def forward(self, image: Tensor) -> Tensor:
        """uint8[b, S, S, 3] -> float[b, P, D]."""
        return self.project(self.features(image))
