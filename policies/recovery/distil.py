"""Distillation of a trimmed policy from the dense one: no labels, only what the dense policy feels.

The teacher looks once at every image and instruction; what is kept of it is its cognition feature,
the visual tokens, and trajectories of its sampler. The student is trained to give the same feature
under its plan: the loss is |z - z_teacher|^2 over the variance of z, and half of the same for the
visual tokens where the encoders are trained too. The head has a loss of its own (`head`), which
shares no weights with these. Knows tensors and modules; no file and no simulator.
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
from trimvla.policies.recovery.head import head_distances, noises, sampler_table, trajectories
from trimvla.policies.recovery.patch import with_weights

LEFT_OUT = (
    "language.embed_tokens.",  # 4,096 x 32,000 numbers at 7 B, and words that frames lack
    "head.z_embedder.uncondition",  # a head without guidance does not look at it
)
HEAD = "head"
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
    head_rate: float = 3e-4
    noises: int = 2
    """Trajectories for each instruction of an image, where the head is trained."""
    seed: int = 0

    @property
    def with_head(self) -> bool:
        """Whether guidance is distilled into the head."""
        return HEAD in self.parts

    @property
    def with_feature(self) -> bool:
        """Whether anything in front of the head is trained."""
        return self.parts != (HEAD,)


@dataclass(frozen=True)
class Taught:
    """What the teacher gives for some images."""

    visual: Tensor
    """bfloat16[n, K, D] at the student's places: what it takes in, or what it is to give itself."""
    feature: Tensor
    """float32[n, k, D]."""
    x: Tensor
    """float32[n, k, N, S, H, A]: the noisy actions before each sampler step of N trajectories, none
    where the head is not trained."""
    epsilon: Tensor
    """The same: the guided noise prediction there."""


def trained_names(student: nn.Module, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the weights that these parts train."""
    return tuple(
        name
        for name, _ in student.named_parameters()
        if name.split(".")[0] in parts and not name.startswith(LEFT_OUT)
    )


@torch.no_grad()
def teach(dense: CogAct, student: CogAct, frames: Frames, rows: Tensor, recipe: Recipe) -> Taught:
    """What the dense policy gives for these images."""
    visuals: list[Tensor] = []
    features: list[Tensor] = []
    sampled: list[tuple[Tensor, Tensor]] = []
    patches = dense.cfg.patches
    seen = getattr(student.language, "seen", None)
    for part in rows.split(BATCH):
        image = frames.images[part]
        visual = dense.vision(image)
        ids, last = words_of(frames, part)
        features.append(cognition_features(dense.language, visual, ids, last, patches).float())
        sampled.append(_sampled(dense, student, features[-1], part, recipe))
        if seen is not None:
            visual = visual[:, list(seen)] if "vision" in recipe.parts else student.vision(image)
        visuals.append(visual.to(torch.bfloat16))
    x, epsilon = zip(*sampled, strict=True)
    return Taught(torch.cat(visuals), torch.cat(features), torch.cat(x), torch.cat(epsilon))


def _sampled(
    dense: CogAct, student: CogAct, feature: Tensor, rows: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Trajectories for features float[m, k, D] of these images: twice float32[m, k, N, S, H, A]."""
    head = dense.cfg.head
    steps = sampler_table(student)
    each = (feature.shape[1], recipe.noises if recipe.with_head else 0)
    chunk = (head.horizon, head.action_dim)
    if not each[1]:
        nothing = feature.new_zeros(len(rows), *each, len(steps), *chunk)
        return nothing, nothing.clone()
    noise = noises(rows, (*each, *chunk), recipe.seed).to(feature.device)
    cognition = feature[:, :, None].expand(-1, -1, each[1], -1).flatten(0, 2)
    x, epsilon = trajectories(dense, steps, cognition, noise.flatten(0, 2))
    shape = (len(rows), *each)
    return x.float().unflatten(0, shape), epsilon.float().unflatten(0, shape)


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
        self.groups = self._groups()
        self.optimiser = torch.optim.AdamW(
            [{"params": weights, "lr": rate} for rate, weights in self.groups],
            betas=BETAS,
            weight_decay=0.0,
        )
        self.step = 0
        self.variance = spread_of(taught.feature)
        self.visual_variance = spread_of(taught.visual)

    def update(self, rows: Tensor) -> float:
        """One step on the next of these images; its loss."""
        share = self._schedule()
        for group, (rate, _) in zip(self.optimiser.param_groups, self.groups, strict=True):
            group["lr"] = rate * share
        self.optimiser.zero_grad(set_to_none=True)
        recipe = self.recipe
        noise = self.step * recipe.pictures // len(rows) % recipe.noises  # each round another
        loss = self.loss(rows[batch_of(len(rows), self.step, recipe)], noise)
        loss.backward()
        for _, weights in self.groups:
            nn.utils.clip_grad_norm_(weights, CLIP)  # each loss by itself
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def loss(self, rows: Tensor, noise: int = 0) -> Tensor:
        """What is minimised, on these images and this trajectory of each of their instructions."""
        found: list[Tensor] = []
        if self.recipe.with_feature:
            visual, unlike = self._visual(rows)
            found.append(self._distances(rows, visual).mean() + VISUAL_WEIGHT * unlike)
        if self.recipe.with_head:
            found.append(self._head_distances(rows, noise).mean())
        return torch.stack(found).sum()

    @torch.no_grad()
    def distances(self, rows: Tensor) -> Tensor:
        """float32[m * k]: the feature's distance to the teacher's, each instruction by itself."""
        found = [
            self._distances(part, self._visual(part)[0]).flatten() for part in rows.split(BATCH)
        ]
        return torch.cat(found)

    @torch.no_grad()
    def head_distances(self, rows: Tensor) -> Tensor:
        """float32[m * k * N]: the head's distance to the teacher's, each trajectory by itself."""
        found = [
            self._head_distances(part, noise)
            for noise in range(self.recipe.noises)
            for part in rows.split(BATCH)
        ]
        return torch.cat(found)

    def _head_distances(self, rows: Tensor, noise: int) -> Tensor:
        feature = self.taught.feature[rows].flatten(0, 1)
        x = self.taught.x[rows, :, noise].flatten(0, 1)
        epsilon = self.taught.epsilon[rows, :, noise].flatten(0, 1)
        return head_distances(self.policy, feature, x, epsilon)

    def _groups(self) -> list[tuple[float, list[Tensor]]]:
        """The weights by loss, after the highest learning rate of each."""
        of_head = [name for name in self.names if name.split(".")[0] == HEAD]
        others = [name for name in self.names if name not in of_head]
        rates = ((self.recipe.head_rate, of_head), (self.recipe.learning_rate, others))
        return [(rate, [self.weights[name] for name in names]) for rate, names in rates if names]

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
