"""Schedules for the diffusion head: at which sampler steps its blocks run, and what the other steps
reuse.

The blocks are plain residual ones, so all their cached outputs collapse into one tensor, their sum:
a reuse step is embed, add the sum, final layer (EfficientVLA, arXiv 2506.10100, gives the interval;
the collapse is exact up to the order of summation). Fewer DDIM steps are the control that a
schedule must beat.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from trimvla.policies.nn.dit import Dit
from trimvla.runtime.errors import ConfigError


def every(interval: int, steps: int) -> tuple[int, ...]:
    """Recompute at each multiple of `interval`.

    Raises:
        ConfigError: an interval below 1, or beyond the steps.
    """
    if not 1 <= interval <= steps:
        raise ConfigError(
            f"expected a cache interval from 1 to {steps} (the DDIM steps), got {interval}"
        )
    return tuple(range(0, steps, interval))


class CachedDit:
    """A head that runs its blocks at some calls and reuses their sum at the others; for one sample
    only.
    """

    def __init__(self, net: Dit, recompute: Iterable[int], residual: Tensor | None = None) -> None:
        """`recompute` holds the numbers of the calls, from 0 on, that run the blocks.

        `residual` float[b, 1 + H, width] is what the first calls reuse, where they do not run the
        blocks.
        """
        self.net = net
        self.recompute = frozenset(recompute)
        self.calls = 0
        self.residual = residual

    @property
    def uncondition(self) -> Tensor:
        """float[1, D]: the learned feature for "no condition"."""
        return self.net.uncondition

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """See `Dit.forward`."""
        tokens = self.net.embed(x, t, z)
        if self.calls in self.recompute or self.residual is None:
            self.residual = self.net.residual(tokens)
        self.calls += 1
        return self.net.decode(tokens + self.residual)
