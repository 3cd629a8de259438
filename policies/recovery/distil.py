"""Distillation of a trimmed policy from the dense one: no labels, only what the dense policy feels.

The teacher looks once at every image and instruction; what is kept of it is its cognition feature
and the visual tokens. The student is trained to give the same feature under its plan: the loss is
|z - z_teacher|^2 over the variance of z, and half of the same for the visual tokens where the
encoders are trained too. Knows tensors and modules; no file and no simulator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.recovery.features import cognition_features
from trimvla.policies.recovery.frames import Frames
from trimvla.policies.recovery.patch import with_weights

LEFT_OUT = ("language.embed_tokens.",)  # 4,096 x 32,000 numbers at 7 B, and words that frames lack
BETAS = (0.9, 0.98)
CLIP = 1.0
WARMUP = 20  # steps, or a tenth of all
LAST_RATE = 0.02  # share of the learning rate at the last step
VISUAL_WEIGHT = 0.5
BATCH = 16  # images that the teacher sees at a time


@dataclass(frozen=True)
class Recipe:
    """What shapes the result besides frames and plan."""

    steps: int
    parts: tuple[str, ...] = ("language",)
    pictures: int = 16
    learning_rate: float = 5e-4
    seed: int = 0


@dataclass(frozen=True)
class Taught:
    """What the teacher gives for some images."""

    visual: Tensor
    """bfloat16[n, K, D] at the student's places: what it takes in, or what it is to give itself."""
    feature: Tensor
    """float32[n, k, D]."""


def trained_names(student: nn.Module, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the weights that these parts train."""
    return tuple(
        name
        for name, _ in student.named_parameters()
        if name.split(".")[0] in parts and not name.startswith(LEFT_OUT)
    )


@torch.no_grad()
def teach(
    dense: CogAct, student: CogAct, frames: Frames, rows: Tensor, parts: tuple[str, ...]
) -> Taught:
    """What the dense policy gives for these images."""
    visuals = []
    features = []
    patches = dense.cfg.patches
    seen = getattr(student.language, "seen", None)
    for part in rows.split(BATCH):
        image = frames.images[part]
        visual = dense.vision(image)
        ids, last = words_of(frames, part)
        features.append(cognition_features(dense.language, visual, ids, last, patches).float())
        if seen is not None:
            visual = visual[:, list(seen)] if "vision" in parts else student.vision(image)
        visuals.append(visual.to(torch.bfloat16))
    return Taught(torch.cat(visuals), torch.cat(features))


def words_of(frames: Frames, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The ids int64[m, k, L'] of some images, without padding that none of them needs, and their
    ends.
    """
    last = frames.last[rows]
    return frames.input_ids[rows, :, : int(last.max()) + 1], last


class Distiller:
    """The student, its optimiser, and what it learns from; advanced step by step."""

    def __init__(self, student: CogAct, frames: Frames, taught: Taught, recipe: Recipe) -> None:
        """`student` is the dense policy under the plan; it stays as it is."""
        self.recipe = recipe
        self.frames = frames
        self.taught = taught
        self.names = trained_names(student, recipe.parts)
        start = dict(student.named_parameters())
        policy = with_weights(student, {name: start[name].detach().clone() for name in self.names})
        assert isinstance(policy, CogAct)
        self.policy = policy.requires_grad_(False)
        named = dict(policy.named_parameters())
        self.weights = {name: named[name].requires_grad_(True) for name in self.names}
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0
        )
        self.step = 0
        self.variance = spread_of(taught.feature)
        self.visual_variance = spread_of(taught.visual)

    def update(self, rows: Tensor) -> float:
        """One step on the next of these images; its loss."""
        rate = self.recipe.learning_rate * self._schedule()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(rows[batch_of(len(rows), self.step, self.recipe)])
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.weights.values()), CLIP)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def loss(self, rows: Tensor) -> Tensor:
        """What is minimised, on these images."""
        visual, unlike = self._visual(rows)
        return self._distances(rows, visual).mean() + VISUAL_WEIGHT * unlike

    @torch.no_grad()
    def distances(self, rows: Tensor) -> Tensor:
        """float32[m * k]: the feature's distance to the teacher's, each instruction by itself."""
        found = [
            self._distances(part, self._visual(part)[0]).flatten() for part in rows.split(BATCH)
        ]
        return torch.cat(found)

    def _visual(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The student's visual tokens, and how unlike the teacher's they are."""
        known = self.taught.visual[rows].float()
        if "vision" not in self.recipe.parts:
            return known, known.new_zeros(())
        visual = self.policy.vision(self.frames.images[rows])
        return visual, (visual - known).square().sum(-1).mean() / self.visual_variance

    def _distances(self, rows: Tensor, visual: Tensor) -> Tensor:
        ids, last = words_of(self.frames, rows)
        z = cognition_features(self.policy.language, visual, ids, last, self.policy.cfg.patches)
        return (z.float() - self.taught.feature[rows]).square().sum(-1) / self.variance

    def _schedule(self) -> float:
        steps = self.recipe.steps
        warm = min(1.0, (self.step + 1) / max(1, min(WARMUP, steps // 10)))
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / steps))
        return warm * (LAST_RATE + (1 - LAST_RATE) * cosine)

    def state(self) -> dict[str, Tensor]:
        """Weights and the optimiser's moments, by name."""
        found = {f"weight.{name}": value.detach() for name, value in self.weights.items()}
        for name, value in self.weights.items():
            moments: Mapping[str, Any] = self.optimiser.state.get(value, {})
            found |= {f"{key}.{name}": moments[key] for key in moments}
        return found

    def resume(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on from what `state` gave after so many steps."""
        self.step = step
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(state[f"weight.{name}"])
                if step:
                    self.optimiser.state[value] = {
                        key: state[f"{key}.{name}"].clone()
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }


def spread_of(values: Tensor) -> float:
    """Variance of vectors float[..., D], summed over their numbers."""
    rows = values.flatten(0, -2).float()
    return float((rows - rows.mean(0)).square().sum(-1).mean()) or 1.0


def batch_of(count: int, step: int, recipe: Recipe) -> Tensor:
    """int64[pictures] below `count`: every image once in each round, in an order of its own."""
    places = np.arange(step * recipe.pictures, (step + 1) * recipe.pictures)
    orders = {
        int(number): np.random.default_rng((recipe.seed, int(number))).permutation(count)
        for number in np.unique(places // count)
    }
    return torch.tensor([int(orders[int(place // count)][place % count]) for place in places])


def chunks_of(count: int, size: int) -> Iterator[Tensor]:
    """Rows 0 to `count`, `size` at a time."""
    yield from torch.arange(count).split(size)
