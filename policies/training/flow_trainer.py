"""Behaviour cloning of a pi0-shaped policy with the flow loss, resumable.

Loss: the velocity of noisy action chunks at random times, read-outs of object, target and tool
positions by the words, and one attention head that is taught to point from a noun to its thing in
the first camera's picture. Several instructions share a picture's encoder; layers and visual
tokens are left out at random, so that they can be trimmed later. Knows shards and modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.cogact.initialise import sincos_grid
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.training.dropping import block_order, spread
from trimvla.policies.training.flow_dataset import FlowBatch
from trimvla.policies.training.flow_forward import (
    Dropped,
    Remembered,
    pointer_loss,
    remember,
    velocity,
)
from trimvla.policies.training.optimised import AuxHead, Optimised
from trimvla.policies.training.state import Origin
from trimvla.policies.training.trainer import AUX_SCALE, TURN_WEIGHT, scale_aux

EMBEDDING_STD = 0.05
"""Of words: pi0 multiplies them by sqrt(width)."""
TIME_ALPHA = 1.5
TIME_SCALE = 0.999
TIME_MIN = 0.001
"""Times are drawn from Beta(alpha, 1), scaled and shifted: more of them near the noise (pi0)."""
POINTER_SIGMA = 0.6


@dataclass(frozen=True)
class FlowRecipe:
    """Everything that shapes the result besides config and data."""

    steps: int = 4000
    pictures: int = 16
    sentences: int = 4
    draws: int = 4
    """Noisy chunks for each prompt."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 150
    ema: float = 0.998
    aux_weight: float = 2.0
    pointer_weight: float = 0.3
    pointer_layer: int = 3
    drop_layer: float = 0.1
    thin: float = 0.5
    """Share of the batches that lose half of their visual tokens on the way."""
    thin_layer: int = 2
    """The first layer at whose input they leave; up to the pointing one."""
    seed: int = 0


class FlowTrainer(Optimised):
    """Policy, its average, auxiliary head and optimiser."""

    def __init__(
        self, cfg: Pi0Config, recipe: FlowRecipe, aux_outputs: int, device: str = "cpu"
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.cfg = cfg
        self.policy = initialise(Pi0(cfg))
        self.aux = AuxHead(cfg.language.width, aux_outputs)
        model = nn.ModuleDict({"policy": self.policy, "aux": self.aux})
        super().__init__(model, recipe, device)
        self.recipe: FlowRecipe = recipe

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """See `Optimised.total`."""
        loss = losses["flow"] + self.recipe.aux_weight * losses["aux"]
        return loss + self.recipe.pointer_weight * losses["pointer"]

    def losses(self, batch: FlowBatch, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Optimised.losses`."""
        dropped = self._dropped(rng)
        batch = batch.to(self.device)
        count, sentences = batch.ids.shape[:2]
        visual = (
            self.policy.vision(batch.images.flatten(0, 1)).unflatten(0, (count, -1)).flatten(1, 2)
        )
        memory = remember(
            self.policy.language,
            visual.repeat_interleave(sentences, 0),
            batch.ids.flatten(0, 1),
            batch.lengths.flatten(),
            pointer=self.recipe.pointer_layer,
            patches=self.cfg.patches,
            dropped=dropped,
        )
        state = batch.state.repeat_interleave(sentences, 0)
        readings = self.aux(memory.states)
        target = scale_aux(batch.aux.flatten(0, 1))
        error = (_last(readings, memory.lengths) - target).abs()
        return {
            "flow": self._flow(memory, state, batch.actions.flatten(0, 1)),
            "aux": _read_out(readings, target, memory.lengths),
            "pointer": pointer_loss(
                memory,
                batch.nouns.flatten(0, 1),
                batch.points.flatten(0, 1),
                self.cfg.patches,
                POINTER_SIGMA,
            ),
            "object_cm": error[..., :2].mean() * AUX_SCALE * 100,
            "target_cm": error[..., 2:4].mean() * AUX_SCALE * 100,
            "turn_rad": error[..., -1].mean() / TURN_WEIGHT,
        }

    def _flow(self, memory: Remembered, state: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error of the velocity at `draws` random times for every chunk."""
        clean = actions.repeat_interleave(self.recipe.draws, 0)
        noise = torch.randn(clean.shape).to(self.device)
        uniform = torch.rand(len(clean), dtype=torch.float64)
        times = TIME_SCALE * uniform ** (1.0 / TIME_ALPHA) + TIME_MIN
        t = times.float().to(self.device)[:, None, None]
        noisy = t * noise + (1 - t) * clean
        predicted = velocity(self.policy.expert, memory, state, noisy, times.tolist())
        return F.mse_loss(predicted, noise - clean)

    def _dropped(self, rng: np.random.Generator) -> Dropped:
        recipe = self.recipe
        layers = self.cfg.language.layers
        ramp = min(1.0, max(0.0, self.step / recipe.steps - 0.2) / 0.3)
        chance = recipe.drop_layer * ramp
        skipped = frozenset(
            index
            for index in range(1, layers - 1)
            if index != recipe.pointer_layer and rng.random() < chance
        )
        if rng.random() >= recipe.thin:
            return Dropped(skipped)
        after = int(rng.integers(recipe.thin_layer, recipe.pointer_layer + 1))
        patches = self.cfg.patches
        kept = [
            camera * patches + spread(block_order(patches, rng), patches // 2)
            for camera in range(len(self.cfg.cameras))
        ]
        return Dropped(skipped, after, torch.from_numpy(np.concatenate(kept)).to(self.device))

    def start_from(self, policy: Pi0, origin: Origin | None = None) -> None:
        """Take a trained policy's weights; auxiliary head and optimiser start anew."""
        self.origin = origin
        self.policy.load_state_dict(policy.state_dict())
        self.average = self.snapshot()

    def averaged_policy(self) -> Pi0:
        """A copy of the policy with the averaged weights."""
        policy = Pi0(self.cfg)
        policy.load_state_dict(self.averaged("policy"))
        return policy.eval()


def _last(readings: Tensor, lengths: Tensor) -> Tensor:
    """Of float[b, L, X] the row of the last id, float[b, X]."""
    rows = (lengths - 1)[:, None, None].expand(-1, 1, readings.shape[-1])
    return readings.gather(1, rows)[:, 0]


def _read_out(readings: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """Mean smooth L1 of float[b, L, X] against float[b, X], over every word."""
    wanted = target[:, None].expand_as(readings)
    error = F.smooth_l1_loss(readings, wanted, beta=0.05, reduction="none").mean(dim=-1)
    counted = torch.arange(readings.shape[1], device=lengths.device) < lengths[:, None]
    return (error * counted).sum() / counted.sum()


@torch.no_grad()
def initialise(policy: Pi0) -> Pi0:
    """Give every parameter its starting value, in place; draws from torch's global generator.

    Linear maps keep the variance (Xavier), residual branches start small by depth, positions start
    as sines and cosines, and the velocity starts at zero.
    """
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(policy.language.embed_tokens.weight, std=EMBEDDING_STD)
    table = policy.vision.encoder.position_embedding.weight
    table.copy_(sincos_grid(*table.shape)[: len(table)])
    for part, count in (
        (policy.vision.encoder, len(policy.vision.encoder.layers)),
        (policy.language, len(policy.language.layers)),
        (policy.expert, len(policy.expert.layers)),
    ):
        scale = 1.0 / math.sqrt(2 * count)
        for name, parameter in part.named_parameters():
            if name.endswith(
                ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
            ):
                parameter.mul_(scale)
    nn.init.zeros_(policy.expert.action_out_proj.weight)
    return policy
