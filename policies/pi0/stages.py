"""The stages of pi0 and pi0.5: one row each, with what crosses its border. Batch is always 1.

    images -> vision -> visual; visual, input_ids, last -> language -> keys, values
    keys, values, last (and state for pi0), noise -> action -> actions

Keys and values have one length, that of the longest prompt, with zeros behind a shorter one; `last`
says how many count. Where tokens are dropped, layers before and behind have keys of two lengths.
All that depends on the flow's time alone is a constant of the action stage, every Euler step is
unrolled. Knows no file format and no backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.nn.flow import KnownRows, flow_sample, flow_steps, flow_trajectory
from trimvla.policies.nn.gemma import KeysValues
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.expert import Memory
from trimvla.policies.pi0.kept import euler_steps, split, visual_tokens
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.pi0.sampler import CachedExpert
from trimvla.policies.stage import PROMPT_AXIS, SAMPLED_TOLERANCE, Stage
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()
GROUPS = ("dense", "kept")  # suffixes of keys and values where tokens are dropped


class VisionStage(nn.Module):
    """Images of all cameras to visual tokens."""

    def __init__(self, policy: Pi0) -> None:
        super().__init__()
        self.vision = policy.vision

    def forward(self, images: Tensor) -> Tensor:
        """uint8 or float32[C, S, S, 3] -> float[C * P, D]."""
        return self.vision(images).flatten(0, 1)


class LanguageStage(nn.Module):
    """Visual tokens and prompt to the keys and values that the expert reads, padded to the longest
    prompt.
    """

    def __init__(self, policy: Pi0) -> None:
        super().__init__()
        self.language = policy.language
        self.longest = policy.cfg.prompt.longest
        self.split = split(policy.plan, policy.cfg)
        self.drops = policy.plan.tokens is not None

    def forward(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        """float[V, D], int64[1, L], int64[1] -> keys and values, each float[layers, kv heads, N,
        d].

        Where tokens are dropped: keys and values of the layers before and of those behind, as far
        as any is read, and int64[1, K] raster indices.
        """
        output = self.language.memory_and_kept(visual[None], input_ids, last + 1)
        layers = output.memory.layers
        missing = self.longest - input_ids.shape[1]
        if output.kept is None:
            return stacked(layers, missing)
        early, _ = self.split
        groups = [group for group in (layers[:early], layers[early:]) if group]
        made = [tensor for group in groups for tensor in stacked(group, missing)]
        return (*made, output.kept)


def stacked(layers: Sequence[KeysValues], missing: int) -> tuple[Tensor, Tensor]:
    """Keys and values of some layers float[layers, kv heads, n + missing, d], zeros behind."""
    keys = torch.cat([layer.keys for layer in layers])
    values = torch.cat([layer.values for layer in layers])
    return F.pad(keys, (0, 0, 0, missing)), F.pad(values, (0, 0, 0, missing))


class ActionStage(nn.Module):
    """Keys, values and noise to an action chunk: every Euler step, unrolled."""

    def __init__(self, policy: Pi0) -> None:
        super().__init__()
        cfg = policy.cfg
        plan = policy.plan
        self.expert = policy.expert
        self.steps = flow_steps(policy.steps)
        self.recompute = plan.recompute
        self.has_state = cfg.has_state_token
        self.ungated = policy.ungated
        self.start = cfg.visual_tokens
        dense = visual_tokens(plan, cfg)
        counts = split(plan, cfg) if plan.tokens is not None else (len(policy.expert.layers), 0)
        kept = dense if plan.tokens is None else plan.tokens.keep
        self.visual = [n for n, count in zip((dense, kept), counts, strict=True) if count]
        with torch.no_grad():
            table = policy.expert.time_table([step.t for step in self.steps])
        self.register_buffer("table", table, persistent=False)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Keys and values group by group, int64[1] `last`, the state where there is one, noise
        float[1, H, A].
        """
        field, noise, rest = self.field(tensors)
        assert not rest
        return flow_sample(field, noise, self.steps)

    def field(self, tensors: Sequence[Tensor]) -> tuple[CachedExpert, Tensor, Sequence[Tensor]]:
        """The velocity field, the noise, and what follows them in the inputs."""
        groups = 2 * len(self.visual)
        last = tensors[groups]
        rest = tensors[groups + 1 :]
        state = rest[0] if self.has_state else None
        noise, *more = rest[1:] if self.has_state else rest
        memory = self.memory(tensors[:groups], last + 1)
        assert isinstance(self.table, Tensor)
        field = CachedExpert(
            self.expert, memory, self.table, state, self.recompute, ungated=self.ungated
        )
        return field, noise, more

    def memory(self, tensors: Sequence[Tensor], length: Tensor) -> Memory:
        """Layer by layer, of keys and values by groups."""
        layers: list[KeysValues] = []
        valid: list[Tensor] = []
        for index, visual in enumerate(self.visual):
            keys, values = tensors[2 * index : 2 * index + 2]
            mask = torch.arange(keys.shape[2], device=keys.device) < visual + length[:, None]
            for layer in range(keys.shape[0]):
                layers.append(KeysValues(keys[layer][None], values[layer][None]))
                valid.append(mask)
        return Memory(tuple(layers), tuple(valid), self.start + length)


class GuidedActionStage(ActionStage):
    """The same, with rows that are known: frozen or guided towards (real-time chunking)."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """As `ActionStage.forward`; then float[1, H, A] and float[1, H, 1] from 0 (free) to 1
        (frozen).
        """
        field, noise, (known, weight) = self.field(tensors)
        return flow_sample(field, noise, self.steps, KnownRows(known, weight))


class TrajectoryStage(ActionStage):
    """The same as `ActionStage`, after every step: for comparisons with a reference."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """float[steps + 1, H, A]: the noise, then x after each step."""
        field, noise, _ = self.field(tensors)
        return torch.cat([noise, *flow_trajectory(field, noise, self.steps)])


def memory_names(cfg: Pi0Config, plan: Plan) -> tuple[str, ...]:
    """Names of the keys and values, group by group."""
    if plan.tokens is None:
        return ("keys", "values")
    suffixes = [name for name, count in zip(GROUPS, split(plan, cfg), strict=True) if count]
    return tuple(f"{kind}_{suffix}" for suffix in suffixes for kind in ("keys", "values"))


def action_inputs(cfg: Pi0Config, plan: Plan) -> tuple[str, ...]:
    """Names of the action stage's inputs."""
    state = ("state",) if cfg.has_state_token else ()
    return (*memory_names(cfg, plan), "last", *state, "noise")


def stages(cfg: Pi0Config, plan: Plan = DENSE, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy under a plan; `guided` with the optional one."""
    memory = memory_names(cfg, plan)
    kept = () if plan.tokens is None else ("kept",)
    inputs = action_inputs(cfg, plan)
    plain = (
        Stage("vision", VisionStage, ("images",), ("visual",), 1e-4),
        Stage("language", LanguageStage, ("visual", "input_ids", "last"), (*memory, *kept), 2e-4),
        Stage("action", ActionStage, inputs, ("actions",), SAMPLED_TOLERANCE),
    )
    if not guided:
        return plain
    steered = Stage(
        "action_guided",
        GuidedActionStage,
        (*inputs, "known", "weight"),
        ("guided_actions",),
        SAMPLED_TOLERANCE,
        weights_of="action",
    )
    return (*plain, steered)


def trajectory_stage(cfg: Pi0Config, plan: Plan) -> Stage:
    """The row of `TrajectoryStage`."""
    inputs = action_inputs(cfg, plan)
    return Stage("trajectory", TrajectoryStage, inputs, ("trajectory",), SAMPLED_TOLERANCE)


def tensor_specs(cfg: Pi0Config, plan: Plan = DENSE) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    side = cfg.vision.image_size
    language = cfg.language
    chunk = (1, cfg.horizon, cfg.padded_action_dim)
    visual = visual_tokens(plan, cfg)
    kept = visual if plan.tokens is None else plan.tokens.keep
    early, late = split(plan, cfg)

    def memory(layers: int, tokens: int) -> tuple[int, ...]:
        return (layers, language.kv_heads, tokens + cfg.prompt.longest, language.head_dim)

    specs = [
        TensorSpec("images", cfg.image_dtype, (len(cfg.cameras), side, side, 3)),
        TensorSpec("visual", "float32", (visual, language.width)),
        TensorSpec("input_ids", "int64", (1, PROMPT_AXIS)),
        TensorSpec("last", "int64", (1,)),
        TensorSpec("state", "float32", (1, cfg.padded_state_dim)),
        TensorSpec("noise", "float32", chunk),
        TensorSpec("actions", "float32", chunk),
        TensorSpec("known", "float32", chunk),
        TensorSpec("weight", "float32", (1, cfg.horizon, 1)),
        TensorSpec("guided_actions", "float32", chunk),
        TensorSpec("kept", "int64", (1, kept)),
        TensorSpec("trajectory", "float32", (euler_steps(plan, cfg) + 1, *chunk[1:])),
    ]
    for kind in ("keys", "values"):
        specs.append(TensorSpec(kind, "float32", memory(early + late, visual)))
        specs.append(TensorSpec(f"{kind}_dense", "float32", memory(early, visual)))
        specs.append(TensorSpec(f"{kind}_kept", "float32", memory(late, kept)))
    return {spec.name: spec for spec in specs}


def example_inputs(
    cfg: Pi0Config, plan: Plan, bucket: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random images, a prompt of this bucket's length, state and noise, by tensor name.

    Images are coarse blocks under fine noise, so that both low and high frequencies are excited.
    """
    side = cfg.vision.image_size
    count = len(cfg.cameras)
    cell = -(-side // 4)
    coarse = torch.rand(count, 4, 4, 3, generator=generator)
    coarse = coarse.repeat_interleave(cell, 1)[:, :side].repeat_interleave(cell, 2)[:, :, :side]
    images = 0.8 * coarse + 0.2 * torch.rand(count, side, side, 3, generator=generator)
    ids = torch.randint(cfg.language.vocab, (1, bucket), generator=generator)
    last = int(torch.randint(bucket // 2, bucket, (1,), generator=generator))
    ids[:, 0] = cfg.prompt.bos_id
    ids[:, last + 1 :] = cfg.prompt.pad_id
    noise = torch.randn(1, cfg.horizon, cfg.padded_action_dim, generator=generator)
    inputs = {
        "images": images if cfg.image_dtype == "float32" else (255 * images).to(torch.uint8),
        "input_ids": ids,
        "last": torch.tensor([last]),
        "noise": noise,
    }
    if cfg.has_state_token:
        state = torch.zeros(1, cfg.padded_state_dim)
        state[:, : cfg.state_dim] = torch.randn(1, cfg.state_dim, generator=generator)
        inputs["state"] = state
    return inputs
