"""Guidance distilled into the action head: its conditional half alone is trained to predict the
noise that both halves of the dense head predict together.

Teacher-forced: the student sees the noisy actions through which the dense policy's own sampler
goes, from several noises; at a step that reuses, it adds what its blocks gave at the last step that
recomputed, as under its plan. The condition is the dense policy's feature, which a recovered
decoder gives too, so the head does not wait for one. Knows tensors and modules; no optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.stages import guidance_scale
from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.diffusion import DdimStep, ddim_steps, guided
from trimvla.policies.trimming.trimmed import sampler_steps


def sampler_table(student: CogAct) -> list[DdimStep]:
    """The sampler steps of a policy under its plan."""
    cfg = student.cfg
    return ddim_steps(cfg.diffusion.train_steps, sampler_steps(student.plan, cfg))


def noises(rows: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """float32[m, *shape], standard normal: the same for an image whatever others are drawn."""
    drawn = [
        np.random.default_rng((seed, int(row))).standard_normal(tuple(shape), np.float32)
        for row in rows
    ]
    return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def trajectories(
    dense: CogAct, steps: Sequence[DdimStep], cognition: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the dense policy's sampler goes, with its guidance and all its blocks at every step.

    Args:
        dense: the teacher.
        steps: of the student's sampler.
        cognition: float[b, D].
        noise: float[b, H, A].

    Returns:
        The noisy actions before each step and the guided noise prediction there, each
        float[b, S, H, A].
    """
    epsilon = guided(dense.head, cognition, dense.cfg.diffusion.guidance)
    before: list[Tensor] = []
    predicted: list[Tensor] = []
    x = noise
    for step in steps:
        before.append(x)
        predicted.append(epsilon(x, step.t))
        x, _ = step.apply(x, predicted[-1])
    return torch.stack(before, dim=1), torch.stack(predicted, dim=1)


def predictions(student: CogAct, cognition: Tensor, x: Tensor) -> Tensor:
    """The noise that the student predicts at every step, with gradients.

    Args:
        student: a policy under its plan.
        cognition: float[b, D].
        x: float[b, S, H, A], the noisy actions before each step.

    Returns:
        float[b, S, H, A].
    """
    recompute = student.plan.recompute
    net = student.head if recompute is None else CachedDit(student.head, recompute)
    epsilon = guided(net, cognition, guidance_scale(student))
    steps = sampler_table(student)
    return torch.stack([epsilon(x[:, k], step.t) for k, step in enumerate(steps)], dim=1)


def head_distances(student: CogAct, cognition: Tensor, x: Tensor, epsilon: Tensor) -> Tensor:
    """float[b]: smooth L1 distance of the student's predictions from the teacher's `epsilon`, mean
    over steps, rows and dimensions.

    Steps count by the square of their `effect`. Counted alike, the last ones that reuse rule: their
    predictions are far off, and hardly move the actions any more.
    """
    found = smooth_l1_loss(predictions(student, cognition, x), epsilon, reduction="none")
    weights = found.new_tensor([step.effect**2 for step in sampler_table(student)])
    return found.mean(dim=(2, 3)) @ (weights / weights.sum())
