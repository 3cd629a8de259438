"""The sampler step by step, from NumPy: a full step and a reuse step as two graphs, and DDIM
between them.

The unrolled `action` stage is one call and the fastest; this pair leaves the decision which steps
to reuse to the program that runs it, and shows every step on the way. Both compute the same. Knows
runners and a table of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trimvla.policies.nn.diffusion import DdimStep
from trimvla.runtime.backends.runner import Runner


@dataclass(frozen=True)
class SamplerStep:
    """One row of the table: a DDIM step, and whether the head's blocks run at it."""

    ddim: DdimStep
    recompute: bool


def trajectory(
    full: Runner,
    reuse: Runner,
    steps: Sequence[SamplerStep],
    cognition: np.ndarray,
    noise: np.ndarray,
) -> Iterator[np.ndarray]:
    """Sample an action chunk; the last one yielded is the sample, normalised and not clipped.

    Args:
        full: stage `action_full`: cognition, x, t -> epsilon, residual.
        reuse: stage `action_reuse`: cognition, x, t, residual -> epsilon.
        steps: the table; its first row recomputes.
        cognition: float32[1, D].
        noise: float32[1, H, A].

    Yields:
        float32[1, H, A] after each step.
    """
    x = noise
    residual = None
    for step in steps:
        inputs = {"cognition": cognition, "x": x, "t": np.array([step.ddim.t], np.float32)}
        if step.recompute or residual is None:
            outputs = full.run(inputs)
            residual = outputs["residual"]
        else:
            outputs = reuse.run({**inputs, "residual": residual})
        x, _ = step.ddim.apply(x, outputs["epsilon"])
        yield x
