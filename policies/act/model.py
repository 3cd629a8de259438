"""The whole policy: vision, encoder and decoder, dense or with what a plan keeps.

`forward` is the deployed computation; vision is one exported stage, encoder and decoder the other.
Sizes: C cameras of T image tokens, D width, H x A action chunk. The latent of the variational
training is zero here, so that its token is a constant. Fitting images, normalising the state and
scaling actions back happen outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from trimvla.policies.act.backbone import ResNet
from trimvla.policies.act.config import ActConfig
from trimvla.policies.act.layers import DecoderLayer, EncoderLayer, FirstDecoderLayer
from trimvla.runtime.bundle.plan import Plan

TEMPERATURE = 10000.0
EPSILON = 1e-6


class Vision(nn.Module):
    """Images of all cameras to tokens."""

    def __init__(self, cfg: ActConfig) -> None:
        super().__init__()
        self.backbone = ResNet(cfg)
        self.projection = nn.Conv2d(cfg.features, cfg.width, 1)
        self.mean = torch.tensor(cfg.mean, device="cpu")[:, None, None]
        self.std = torch.tensor(cfg.std, device="cpu")[:, None, None]

    def pixels(self, images: Tensor) -> Tensor:
        """RGB float[C, H, W, 3] from 0 to 1 -> float[C, 3, H, W], standardised."""
        return ((images - self.mean) / self.std).permute(0, 3, 1, 2)

    def project(self, features: Tensor) -> Tensor:
        """float[C, features, rows, columns] -> float[C * T, D]."""
        return self.projection(features).flatten(2).transpose(1, 2).flatten(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """RGB float[C, H, W, 3] from 0 to 1 -> float[C * T, D]."""
        return self.project(self.backbone(self.pixels(images)))


class Encoder(nn.Module):
    """Latent, states and image tokens, looking at each other."""

    def __init__(self, cfg: ActConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(cfg.width))
        self.single_positions = nn.Parameter(torch.zeros(cfg.single_tokens, cfg.width))
        self.state = nn.Linear(cfg.state_dim, cfg.width) if cfg.state_dim else None
        self.environment = (
            nn.Linear(cfg.environment_dim, cfg.width) if cfg.environment_dim else None
        )
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(cfg.width) if cfg.pre_norm else None
        self.state_dim = cfg.state_dim
        self.image_positions = sinusoids(*cfg.grid, cfg.width).repeat(len(cfg.cameras), 1)

    def tokens(self, visual: Tensor, state: Tensor | None) -> Tensor:
        """float[C * T, D], float[1, S + E] -> float[1, N, D]."""
        rows = [self.latent[None]]
        if self.state is not None and state is not None:
            rows.append(self.state(state[:, : self.state_dim]))
        if self.environment is not None and state is not None:
            rows.append(self.environment(state[:, self.state_dim :]))
        return torch.cat([*rows, visual])[None]

    def positions(self) -> Tensor:
        """float[N, D]."""
        return torch.cat([self.single_positions, self.image_positions])

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """float[1, N, D], float[N, D] -> float[1, N, D]."""
        x = tokens
        for layer in self.layers:
            x = layer(x, positions)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """One row for each action, looking at the encoder's."""

    def __init__(self, cfg: ActConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(cfg.horizon, cfg.width))
        rest = (DecoderLayer(cfg) for _ in range(cfg.decoder_layers - 1))
        self.layers = nn.ModuleList([FirstDecoderLayer(cfg), *rest])
        self.norm = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, cfg.action_dim)

    def rows(self, memory: Tensor, positions: Tensor) -> Tensor:
        """float[1, N, D], float[N, D] -> float[1, H, D], in front of the head."""
        keys = memory + positions
        first, *rest = self.layers
        x = first(memory, keys, self.positions)
        for layer in rest:
            x = layer(x, memory, keys, self.positions)
        return self.norm(x)


class Act(nn.Module):
    """A policy; `plan` is what is kept of it (`trimmed.trim`)."""

    def __init__(
        self,
        cfg: ActConfig,
        vision: Vision,
        encoder: Encoder,
        decoder: Decoder,
        plan: Plan | None = None,
    ) -> None:
        """Of these parts; the plan keeps everything where it is none."""
        super().__init__()
        self.cfg = cfg
        self.plan = Plan() if plan is None else plan
        self.vision = vision
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def of(cls, cfg: ActConfig) -> Act:
        """The dense policy, with torch's default weights."""
        layers = [EncoderLayer(cfg) for _ in range(cfg.encoder_layers)]
        return cls(cfg, Vision(cfg), Encoder(cfg, layers), Decoder(cfg))

    def read_prefix(self, sample: Mapping[str, Tensor]) -> Tensor:
        """What the decoder looks at of `images` and `state`, as `forward` takes them."""
        tokens = self.encoder.tokens(self.vision(sample["images"]), sample.get("state"))
        return self.encoder(tokens, self.encoder.positions())

    def act(self, visual: Tensor, state: Tensor | None) -> Tensor:
        """float[C * T, D], float[1, S + E] -> float[1, H, A], normalised."""
        positions = self.encoder.positions()
        memory = self.encoder(self.encoder.tokens(visual, state), positions)
        return self.decoder.head(self.decoder.rows(memory, positions))

    def forward(self, images: Tensor, state: Tensor | None = None) -> Tensor:
        """RGB float[C, H, W, 3] from 0 to 1, float[1, S + E] -> float[1, H, A]."""
        return self.act(self.vision(images), state)


def build_meta(cfg: ActConfig) -> Act:
    """The dense policy without weights."""
    with torch.device("meta"):
        return Act.of(cfg)


def sinusoids(rows: int, columns: int, width: int) -> Tensor:
    """Places of an image's features, float32[rows * columns, width]: half of the numbers for the
    row, half for the column, in sines and cosines by turns. Counted from 1, the last is 2 pi.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device="cpu")
    periods = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def along(count: int) -> Tensor:
        places = torch.arange(1, count + 1, dtype=torch.float32, device="cpu")
        angles = (places / (places[-1] + EPSILON) * 2 * math.pi)[:, None] / periods
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    down = along(rows)[:, None].expand(rows, columns, half)
    across = along(columns)[None].expand(rows, columns, half)
    return torch.cat([down, across], dim=-1).flatten(0, 1)
