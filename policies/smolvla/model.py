"""The whole policy: vision, decoder and action expert, joined; dense, or what a plan keeps of it.

`forward` is the deployed computation; its three parts are the three exported stages. Sizes: C
cameras of T visual tokens, V of all of them, D decoder width, H x A action chunk. Fitting images
into squares, ids, normalising the state and scaling actions back happen outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.nn.flow import KnownRows, flow_steps, flow_trajectory
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.expert import Expert, Memory, as_layer
from trimvla.policies.smolvla.keys_values import Angles, KeysValues
from trimvla.policies.smolvla.prefix import Looked, Prefix
from trimvla.policies.smolvla.vision import Vision
from trimvla.runtime.bundle.plan import Plan


class SmolVla(nn.Module):
    """A policy; `plan` is what is kept of it (`trimmed.trim`)."""

    def __init__(
        self,
        cfg: SmolVlaConfig,
        vision: Vision,
        prefix: Prefix,
        expert: Expert,
        *,
        plan: Plan | None = None,
        reads: Sequence[int] | None = None,
    ) -> None:
        """Of these parts.

        Args:
            cfg: sizes of the dense policy.
            vision: images to visual tokens.
            prefix: the decoder.
            expert: the action expert.
            plan: what the parts keep; everything where it is none.
            reads: for each expert layer, which of the decoder's layers it reads; the one of its own
                place where it is none.
        """
        super().__init__()
        self.cfg = cfg
        self.plan = Plan() if plan is None else plan
        self.vision = vision
        self.prefix = prefix
        self.expert = expert
        self.reads = tuple(range(len(expert.layers)) if reads is None else reads)
        self.steps = flow_steps(cfg.flow.steps if self.plan.steps is None else self.plan.steps)
        self.times = expert.time_table([step.t for step in self.steps])
        rows = prefix.visual + cfg.prompt.longest + 1 + cfg.horizon
        self.angles = Angles.table(rows, cfg.text.head_dim, cfg.text.rope_base)

    @classmethod
    def of(cls, cfg: SmolVlaConfig) -> SmolVla:
        """The dense policy, with torch's default weights."""
        return cls(cfg, Vision.of(cfg), Prefix.of(cfg), Expert.of(cfg))

    def stream_layers(self) -> list[nn.Module]:
        """The decoder's layers that give a stream: all but the deepest."""
        return list(self.prefix.layers)[:-1]

    def read_prefix(self, sample: Mapping[str, Tensor]) -> Memory:
        """What the expert reads of `images`, `input_ids`, `length` and `state`, as `forward` takes
        them.
        """
        visual = self.vision(sample["images"])
        ids = sample["input_ids"]
        return self.remember(visual, ids, sample["length"], sample["state"])[0]

    def remember(
        self,
        visual: Tensor,
        input_ids: Tensor,
        length: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Memory, Tensor | None]:
        """What the expert reads of the prefix, and the visual tokens int64[b, K] that stayed, where
        some left.

        Args:
            visual: float[V, D].
            input_ids: int64[b, L], padded on the right.
            length: int64[b], ids that are no padding.
            state: float[b, padded state], normalised.
            noise: float[b, H, A], where the expert's attention chooses tokens.
        """
        found = self.prefix(visual, input_ids, length, state, self._looked(noise, length))
        return self.memory(found.layers, found.valid), found.kept

    def memory(self, layers: Sequence[KeysValues], valid: Sequence[Tensor]) -> Memory:
        """What those expert layers read whose decoder layers are there."""
        pairs = [
            (as_layer(layer).memory(layers[index]), valid[index])
            for layer, index in zip(self.expert.layers, self.reads, strict=True)
            if index < len(layers)
        ]
        return Memory(tuple(read for read, _ in pairs), tuple(mask for _, mask in pairs))

    def _looked(self, noise: Tensor | None, length: Tensor) -> Looked | None:
        """The expert's relevance of visual rows, where the plan needs it."""
        tokens = self.plan.tokens
        if tokens is None or tokens.source != "expert" or tokens.scored is None:
            return None
        assert noise is not None, "tokens by the expert's attention need the noise"

        def relevance(layers: Sequence[KeysValues], valid: Tensor) -> Tensor:
            memory = self.memory(layers, [valid] * len(layers))
            around = self.expert.surroundings(memory, self.behind(length), self.angles)
            tokens = self.expert.embed(noise, self.times[0].to(noise.device))
            looked = self.expert.looked(tokens, memory, around).mean(dim=1).sum(dim=1)
            return looked[:, : self.seen_tokens]

        return relevance

    @property
    def seen_tokens(self) -> int:
        """Visual rows in front of the decoder's first layer."""
        places = self.prefix.places
        return self.prefix.visual if places is None else len(places)

    def behind(self, length: Tensor) -> Tensor:
        """int64[b]: the first position behind the prefix, whatever has left it on the way."""
        return self.prefix.visual + length + 1

    def trajectory(
        self, memory: Memory, length: Tensor, noise: Tensor, known: KnownRows | None = None
    ) -> list[Tensor]:
        """Actions float[b, H, A] after every Euler step, from noise of that shape."""
        around = self.expert.surroundings(memory, self.behind(length), self.angles)
        times = self.times.to(noise.device, noise.dtype)
        velocity = self.expert.velocity(memory, around, times, self.plan.recompute)
        return list(flow_trajectory(velocity, noise, self.steps, known))

    def act(
        self, memory: Memory, length: Tensor, noise: Tensor, known: KnownRows | None = None
    ) -> Tensor:
        """float[b, H, A] noise -> float[b, H, A], normalised and not clipped; `known` rows guide
        it.
        """
        return self.trajectory(memory, length, noise, known)[-1]

    def forward(
        self, images: Tensor, input_ids: Tensor, length: Tensor, state: Tensor, noise: Tensor
    ) -> Tensor:
        """One observation to one action chunk.

        Args:
            images: RGB float[C, S, S, 3] from 0 to 1, fitted into squares.
            input_ids: int64[b, L], padded on the right.
            length: int64[b], ids that are no padding.
            state: float[b, padded state], normalised.
            noise: float[b, H, A], standard normal.

        Returns:
            float[b, H, A], normalised and not clipped.
        """
        memory, _ = self.remember(self.vision(images), input_ids, length, state, noise)
        return self.act(memory, length, noise)


def build_meta(cfg: SmolVlaConfig) -> SmolVla:
    """Build the policy without allocating any weight."""
    with torch.device("meta"):
        return SmolVla.of(cfg)
