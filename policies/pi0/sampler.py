"""The expert as a velocity field for one sample, with a schedule that skips its layers at some
steps.

What is skipped reuses what the last full step's layers added to the stream: their sum, or, where
gates depend on the time, each layer's own addition under the gate of the new time. Knows no Euler
step (`nn.flow`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trimvla.policies.nn.flow import StepCache
from trimvla.policies.pi0.expert import Expert, ExpertPass, Memory


class CachedExpert:
    """An expert under a schedule, for one sample: `recompute` are the steps that run its layers
    (None: all).
    """

    def __init__(
        self,
        expert: Expert,
        memory: Memory,
        table: Tensor,
        state: Tensor | None,
        recompute: Iterable[int] | None = None,
        *,
        ungated: bool = False,
    ) -> None:
        """Of one call.

        Args:
            expert: the network.
            memory: the prefix's keys and values.
            table: `Expert.time_table` of the steps.
            state: float[b, padded state] where the expert sees one.
            recompute: numbers of the steps that run the layers.
            ungated: reuse what each layer gave under new gates, instead of the sum.
        """
        self.expert = expert
        self.memory = memory
        self.table = table
        self.state = state
        self.cache: StepCache[Tensor] = StepCache(recompute)
        self.ungated = ungated and expert.modulated

    def __call__(self, x: Tensor, k: int) -> Tensor:
        """The velocity of float[b, H, A] at step `k`."""
        time = self.table[k]
        tokens = self.expert.embed(x, time)
        kept = self.cache.at(k, lambda: self._added(tokens, time))
        added = self.expert.regate(kept, time) if self.ungated else kept
        return self.expert.decode(tokens + added, time)

    def _added(self, tokens: Tensor, time: Tensor) -> Tensor:
        """What the layers give: float[b, H, width], or float[layers, 2, b, H, width] before
        gates.
        """
        passed = self._run(tokens, time)
        if self.ungated:
            return passed.increments
        return passed.x[:, -tokens.shape[1] :] - tokens

    def _run(self, tokens: Tensor, time: Tensor) -> ExpertPass:
        """All layers; the state's row runs once and is memory from then on."""
        if self.state is None:
            return self.expert.run(tokens, self.memory, time)
        rows = torch.cat([self.expert.state_token(self.state), tokens], dim=1)
        passed = self.expert.run(rows, self.memory, time, state_first=True)
        self.memory = self.memory.followed_by(passed.first_rows)
        self.state = None
        return passed
