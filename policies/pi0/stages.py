"""The stages of pi0 and pi0.5: one row each, with what crosses its border. Batch is always 1.

    images -> vision -> visual; visual, input_ids, last -> language -> keys, values
    keys, values, last (and state for pi0), noise -> action -> actions

Keys and values have one length, that of the longest prompt, with zeros behind a shorter one; `last`
counts the valid ones. Where tokens are dropped, layers before and behind have keys of two lengths.
All that depends on the flow's time alone is a constant of the action stage, every Euler step is
unrolled. Knows no file format and no backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.chained import Chained
from trimvla.policies.nn.flow import flow_steps
from trimvla.policies.nn.gemma import KeysValues
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.kept import euler_steps, split, visual_tokens
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.pi0.pieces import ActionParts, build
from trimvla.policies.stage import PROMPT_AXIS, SAMPLED_TOLERANCE, Stage
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()
KNOWN = ("known", "weight")
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
    """Keys and values of some layers float[layers, kv heads, n + missing, d], zeros behind.

    A Gather and a Where: TensorRT 10.3 is not known to take Pad of a computed length, nor a Concat
    with nothing where none is missing.
    """
    first = layers[0].keys
    index = torch.arange(first.shape[2] + missing, device=first.device)
    valid = index < first.shape[2]
    keys = torch.cat([layer.keys for layer in layers])
    values = torch.cat([layer.values for layer in layers])
    return filled(keys, index, valid), filled(values, index, valid)


def filled(x: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """float[..., n, d] at rows int64[m] where bool[m] holds, zeros elsewhere: float[..., m, d]."""
    return torch.where(valid[:, None], x.index_select(2, index * valid), 0.0)


def action_parts(policy: Pi0, *, guided: bool = False) -> ActionParts:
    """What the action stage of a policy is made of; the time's table is worked out here, once."""
    cfg = policy.cfg
    plan = policy.plan
    steps = flow_steps(policy.steps)
    dense = visual_tokens(plan, cfg)
    counts = (split(plan, cfg), (len(policy.expert.layers), 0))[plan.tokens is None]
    kept = dense if plan.tokens is None else plan.tokens.keep
    with torch.no_grad():
        table = policy.expert.time_table([step.t for step in steps])
    return ActionParts(
        expert=policy.expert,
        steps=steps,
        table=table,
        recompute=plan.recompute,
        ungated=policy.ungated,
        groups=[(count, n) for count, n in zip(counts, (dense, kept), strict=True) if count],
        start=cfg.visual_tokens,
        rows=cfg.horizon,
        guided=guided,
    )


def action_stage(policy: Pi0) -> Chained:
    """Keys, values, last, the state where there is one, and noise to an action chunk."""
    return build(action_parts(policy), action_inputs(policy.cfg, policy.plan), "actions")


def guided_stage(policy: Pi0) -> Chained:
    """The same with rows that are known: frozen or guided towards (real-time chunking)."""
    inputs = (*action_inputs(policy.cfg, policy.plan), *KNOWN)
    return build(action_parts(policy, guided=True), inputs, "guided_actions")


def trajectory_of(policy: Pi0) -> Chained:
    """The same as `action_stage`, after every step: for comparisons with a reference."""
    inputs = action_inputs(policy.cfg, policy.plan)
    return build(action_parts(policy), inputs, "trajectory", every_step=True)


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
        Stage("action", action_stage, inputs, ("actions",), SAMPLED_TOLERANCE),
    )
    if not guided:
        return plain
    steered = Stage(
        "action_guided",
        guided_stage,
        (*inputs, *KNOWN),
        ("guided_actions",),
        SAMPLED_TOLERANCE,
        weights_of="action",
    )
    return (*plain, steered)


def trajectory_stage(cfg: Pi0Config, plan: Plan) -> Stage:
    """The row of `trajectory_of`."""
    inputs = action_inputs(cfg, plan)
    return Stage("trajectory", trajectory_of, inputs, ("trajectory",), SAMPLED_TOLERANCE)


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
