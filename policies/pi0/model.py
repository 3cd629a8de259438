"""The whole policy: vision, the decoder of the prefix, the action expert, joined.

The three parts are the three exported stages. Sizes: C cameras of P visual tokens, L prompt ids, N
= C P + L positions of the prefix, D the decoder's width, H x A the padded action chunk. Images are
already square, prompts are ids; normalising the state and un-normalising actions happen outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from trimvla.policies.nn.flow import KnownRows, StepCache, flow_sample, flow_steps
from trimvla.policies.nn.siglip import Siglip
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.expert import Expert, ExpertPass, Memory
from trimvla.policies.pi0.prefix import Prefix
from trimvla.runtime.bundle.plan import Plan


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
        return self.expert.decode(tokens + added, self.expert.final_modulation(time))

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


class Vision(nn.Module):
    """SigLIP to its end, and one linear map into the decoder's width."""

    def __init__(self, cfg: Pi0Config) -> None:
        super().__init__()
        self.encoder = Siglip.of(cfg.vision)
        self.projector = nn.Linear(cfg.vision.width, cfg.language.width)

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """uint8, or float from 0 to 1, [C, S, S, 3] -> float[C, 3, S, S] from -1 to 1."""
        unit = images if images.is_floating_point() else images.float() / 255.0
        return (unit * 2.0 - 1.0).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """uint8, or float from 0 to 1, [C, S, S, 3] -> float[C, P, D]."""
        return self.projector(self.encoder(self.normalise(images)))


class Pi0(nn.Module):
    """A pi0 or pi0.5 policy; `plan` is what is kept of it (`trimmed.trim`)."""

    def __init__(self, cfg: Pi0Config) -> None:
        """Build the modules with torch's default weights."""
        super().__init__()
        self.cfg = cfg
        self.plan = Plan()
        self.vision = Vision(cfg)
        self.language = Prefix.of(cfg)
        self.expert = Expert(cfg)

    ungated = True
    """Reused layers give what they gave before their gates, which the new time sets; else the sum
    with the old ones.
    """

    @property
    def steps(self) -> int:
        """Euler steps."""
        return self.cfg.flow.steps if self.plan.steps is None else self.plan.steps

    def stream_layers(self) -> list[nn.Module]:
        """The decoder's layers that give a stream: all but the deepest."""
        return list(self.language.layers)

    def read_prefix(self, sample: Mapping[str, Tensor]) -> Memory:
        """What the expert reads of `images`, `input_ids` and `length`, as `forward` takes them."""
        visual = self.vision(sample["images"]).flatten(0, 1)[None]
        return self.language(visual, sample["input_ids"], sample["length"])

    def sampler(self, memory: Memory, state: Tensor | None) -> CachedExpert:
        """The velocity field of one call; state float[b, padded state] where the expert sees
        one.
        """
        table = self.expert.time_table([step.t for step in flow_steps(self.steps)])
        return CachedExpert(
            self.expert, memory, table, state, self.plan.recompute, ungated=self.ungated
        )

    def act(
        self, memory: Memory, noise: Tensor, state: Tensor | None, known: KnownRows | None = None
    ) -> Tensor:
        """Sample float[b, H, A] from noise of the same shape; `known` rows guide it."""
        return flow_sample(self.sampler(memory, state), noise, flow_steps(self.steps), known)

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        length: Tensor,
        noise: Tensor,
        state: Tensor | None = None,
    ) -> Tensor:
        """One observation to one action chunk.

        Args:
            images: uint8, or float from 0 to 1, [C, S, S, 3].
            input_ids: int64[1, L], padded on the right.
            length: int64[1], ids that are no padding.
            noise: float[1, H, A], standard normal.
            state: float[1, padded state], normalised, where the expert sees it.

        Returns:
            float[1, H, A], normalised.
        """
        visual = self.vision(images).flatten(0, 1)[None]
        return self.act(self.language(visual, input_ids, length), noise, state)
