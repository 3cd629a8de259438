"""The action head: a diffusion transformer that predicts the noise in an action chunk.

The condition (timestep plus cognition feature) is one token in front of the noisy actions; blocks
are plain pre-norm residual ones, without adaLN and without cross-attention (microsoft/CogACT).
Knows no schedule and no guidance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import Mlp, SelfAttention
from trimvla.policies.sizes.config import HeadConfig

NORM_EPS = 1e-6
MAX_PERIOD = 10000.0


def frequency_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of float or int[b] timesteps -> float32[b, dim]: cosines first, then sines."""
    half = dim // 2
    rates = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(MAX_PERIOD) / half)
    )
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Timestep -> token."""

    def __init__(self, frequency: int, width: int) -> None:
        super().__init__()
        self.frequency = frequency
        self.mlp = nn.Sequential(nn.Linear(frequency, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """int or float[b] -> float[b, width]."""
        return self.mlp(
            frequency_embedding(t, self.frequency).to(next(self.mlp.parameters()).dtype)
        )


class ActionEmbedder(nn.Module):
    """Noisy action -> token."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(action_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """float[b, H, A] -> float[b, H, width]."""
        return self.linear(x.to(self.linear.weight.dtype))


class ConditionEmbedder(nn.Module):
    """Cognition feature -> token; holds the feature that stands for "no condition"."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.uncondition = nn.Parameter(torch.zeros(1, condition))
        self.linear = nn.Linear(condition, width)

    def forward(self, z: Tensor) -> Tensor:
        """float[b, D] -> float[b, width]."""
        return self.linear(z.to(self.linear.weight.dtype))


class FinalLayer(nn.Module):
    """LayerNorm and the map back to actions."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, n, A]."""
        return self.linear(self.norm_final(x))


class DitBlock(nn.Module):
    """Pre-norm residual block, norms without affine parameters."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio), "gelu_tanh")

    def forward(self, x: Tensor) -> Tensor:
        """float[b, n, width] -> float[b, n, width]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Dit(nn.Module):
    """Noise prediction: `embed`, `blocks`, `final_layer`; token 0 (the condition) is dropped."""

    def __init__(self, cfg: HeadConfig, condition: int) -> None:
        """Build the head for a cognition feature of `condition` channels."""
        super().__init__()
        self.x_embedder = ActionEmbedder(cfg.action_dim, cfg.width)
        self.t_embedder = TimestepEmbedder(cfg.frequency, cfg.width)
        self.z_embedder = ConditionEmbedder(condition, cfg.width)
        self.positional_embedding = nn.Parameter(torch.zeros(cfg.horizon + 1, cfg.width))
        self.blocks = nn.ModuleList(
            DitBlock(cfg.width, cfg.heads, cfg.mlp_ratio) for _ in range(cfg.depth)
        )
        self.final_layer = FinalLayer(cfg.width, cfg.action_dim)

    @property
    def uncondition(self) -> Tensor:
        """float[1, D]: the learned feature for "no condition"."""
        return self.z_embedder.uncondition

    def embed(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """float[b, H, A], int or float[b], float[b, D] -> tokens float[b, 1 + H, width]."""
        condition = self.t_embedder(t) + self.z_embedder(z)
        return (
            torch.cat([condition[:, None], self.x_embedder(x)], dim=1) + self.positional_embedding
        )

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """float[b, 1 + H, width] -> the same."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def residual(self, tokens: Tensor) -> Tensor:
        """What all blocks together add to float[b, 1 + H, width]."""
        return self.run_blocks(tokens) - tokens

    def decode(self, tokens: Tensor) -> Tensor:
        """float[b, 1 + H, width] -> float[b, H, A], without the condition token."""
        return self.final_layer(tokens)[:, 1:]

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: float[b, H, A], noisy normalised actions.
            t: int or float[b], training timestep (0 .. train_steps - 1).
            z: float[b, D], cognition feature, or `uncondition` in the rows where the condition is
                dropped.

        Returns:
            float[b, H, A].
        """
        return self.decode(self.run_blocks(self.embed(x, t, z)))
