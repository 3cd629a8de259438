"""The stages of SmolVLA: one row each, with what crosses its border. Batch is always 1.

    images -> vision -> visual; visual, input_ids, last, state -> language -> keys, values
    keys, values, last, noise -> action -> actions

Keys and values are those that each expert layer reads: the decoder's, or the layer's own
projections of them, which no sampler step changes. They have one length, that of the longest
prompt, filled up behind a shorter one; `last` counts the valid ones. Where tokens are dropped,
layers before and behind read rows of two lengths. All that depends on the flow's time alone is a
constant of the action stage; every Euler step is unrolled. Knows no file format and no backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.chained import Chained
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.kept import euler_steps, image_side, split, visual_rows
from trimvla.policies.smolvla.keys_values import KeysValues
from trimvla.policies.smolvla.model import SmolVla
from trimvla.policies.smolvla.pieces import build
from trimvla.policies.stage import PROMPT_AXIS, SAMPLED_TOLERANCE, Stage
from trimvla.runtime.bundle.manifest_types import TensorSpec
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()
GROUPS = ("dense", "kept")  # suffixes of keys and values where tokens are dropped


class VisionStage(nn.Module):
    """Images of all cameras to visual tokens."""

    def __init__(self, policy: SmolVla) -> None:
        super().__init__()
        self.vision = policy.vision

    def forward(self, images: Tensor) -> Tensor:
        """float[C, S, S, 3] from 0 to 1 -> float[V, D]."""
        return self.vision(images)


class LanguageStage(nn.Module):
    """Visual tokens, prompt and state to the keys and values that the expert reads."""

    def __init__(self, policy: SmolVla) -> None:
        super().__init__()
        self.policy = policy
        self.longest = policy.cfg.prompt.longest
        self.counts = split(policy.plan, policy.cfg)
        self.visual = visual_of_groups(policy.cfg, policy.plan)

    def forward(
        self,
        visual: Tensor,
        input_ids: Tensor,
        last: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """float[V, D], int64[1, L], int64[1], float[1, S] -> keys and values, each float[layers, kv
        heads, N, d].

        Where tokens are dropped: keys and values of the layers before and of those behind, as far
        as there are any, and int64[1, K] raster indices; float[1, H, A] noise where the expert's
        attention chooses them.
        """
        memory, kept = self.policy.remember(visual, input_ids, last + 1, state, noise)
        missing = self.longest - input_ids.shape[1]
        early, _ = self.counts
        groups = [group for group in (memory.layers[:early], memory.layers[early:]) if group]
        seen = [n for n, count in zip(self.visual, self.counts, strict=True) if count]
        made = [
            tensor
            for group, rows in zip(groups, seen, strict=True)
            for tensor in stacked(group, rows + 1 + self.longest, missing)
        ]
        return tuple(made) if kept is None else (*made, kept)


def stacked(layers: Sequence[KeysValues], rows: int, missing: int) -> tuple[Tensor, Tensor]:
    """Keys and values of some layers float[layers, kv heads, rows, d]; the `missing` last rows are
    copies of the first one, which nobody looks at.

    A Gather: TensorRT 10.3 is not known to take Pad, nor anything of no rows where none is missing.
    """
    index = torch.arange(rows, device=layers[0].keys.device)
    index = index * (index < rows - missing)
    keys = torch.cat([layer.keys for layer in layers])
    values = torch.cat([layer.values for layer in layers])
    return keys.index_select(2, index), values.index_select(2, index)


def action_stage(policy: SmolVla) -> Chained:
    """Keys and values group by group, `last`, noise -> float[1, H, A], not clipped."""
    return _action(policy, "actions")


def guided_action_stage(policy: SmolVla) -> Chained:
    """The same, with rows that are known: frozen or guided towards (real-time chunking)."""
    return _action(policy, "guided_actions", guided=True)


def trajectory_stage_of(policy: SmolVla) -> Chained:
    """The same as `action_stage`, after every step: float[steps + 1, H, A], the noise first."""
    return _action(policy, "trajectory", every_step=True)


def _action(
    policy: SmolVla, output: str, *, guided: bool = False, every_step: bool = False
) -> Chained:
    cfg = policy.cfg
    plan = policy.plan
    inputs = action_inputs(cfg, plan, guided=guided)
    groups = [
        (count, visual)
        for count, visual in zip(split(plan, cfg), visual_of_groups(cfg, plan), strict=True)
    ]
    return build(policy, groups, inputs, output, every_step=every_step)


def visual_of_groups(cfg: SmolVlaConfig, plan: Plan) -> tuple[int, int]:
    """Visual rows among the keys of the layers before tokens are dropped, and behind."""
    dense = visual_rows(plan, cfg)
    return dense, dense if plan.tokens is None else plan.tokens.keep


def memory_names(cfg: SmolVlaConfig, plan: Plan) -> tuple[str, ...]:
    """Names of the keys and values, group by group."""
    if plan.tokens is None:
        return ("keys", "values")
    suffixes = [name for name, count in zip(GROUPS, split(plan, cfg), strict=True) if count]
    return tuple(f"{kind}_{suffix}" for suffix in suffixes for kind in ("keys", "values"))


def action_inputs(cfg: SmolVlaConfig, plan: Plan, *, guided: bool = False) -> tuple[str, ...]:
    """Names of the action stage's inputs."""
    known = ("known", "weight") if guided else ()
    return (*memory_names(cfg, plan), "last", "noise", *known)


def stages(cfg: SmolVlaConfig, plan: Plan = DENSE, guided: bool = False) -> tuple[Stage, ...]:
    """The stages of a policy under a plan; `guided` with the optional one."""
    memory = memory_names(cfg, plan)
    tokens = plan.tokens
    kept = () if tokens is None else ("kept",)
    scored = tokens is not None and tokens.source == "expert" and tokens.scored is not None
    noise = ("noise",) if scored else ()
    seen = ("visual", "input_ids", "last", "state", *noise)
    plain = (
        Stage("vision", VisionStage, ("images",), ("visual",), 1e-4),
        Stage("language", LanguageStage, seen, (*memory, *kept), 2e-4),
        Stage("action", action_stage, action_inputs(cfg, plan), ("actions",), SAMPLED_TOLERANCE),
    )
    if not guided:
        return plain
    steered = Stage(
        "action_guided",
        guided_action_stage,
        action_inputs(cfg, plan, guided=True),
        ("guided_actions",),
        SAMPLED_TOLERANCE,
        weights_of="action",
    )
    return (*plain, steered)


def trajectory_stage(cfg: SmolVlaConfig, plan: Plan) -> Stage:
    """The row of `trajectory_stage_of`."""
    inputs = action_inputs(cfg, plan)
    return Stage("trajectory", trajectory_stage_of, inputs, ("trajectory",), SAMPLED_TOLERANCE)


def tensor_specs(cfg: SmolVlaConfig, plan: Plan = DENSE) -> dict[str, TensorSpec]:
    """Every tensor that crosses a stage's border, by name."""
    side = image_side(plan, cfg)
    text = cfg.text
    chunk = (1, cfg.horizon, cfg.padded_action_dim)
    visual = visual_rows(plan, cfg)
    kept = visual if plan.tokens is None else plan.tokens.keep
    early, late = split(plan, cfg)

    def memory(layers: int, tokens: int) -> tuple[int, ...]:
        return (layers, text.kv_heads, tokens + 1 + cfg.prompt.longest, text.head_dim)

    specs = [
        TensorSpec("images", "float32", (len(cfg.cameras), side, side, 3)),
        TensorSpec("visual", "float32", (visual, text.width)),
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
    cfg: SmolVlaConfig, plan: Plan, bucket: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random images, a prompt of this bucket's length, state and noise, by tensor name.

    Images are coarse blocks under fine noise, so that both low and high frequencies are excited.
    """
    side = image_side(plan, cfg)
    count = len(cfg.cameras)
    cell = -(-side // 4)
    coarse = torch.rand(count, 4, 4, 3, generator=generator)
    coarse = coarse.repeat_interleave(cell, 1)[:, :side].repeat_interleave(cell, 2)[:, :, :side]
    fine = torch.rand(count, side, side, 3, generator=generator)
    ids = torch.randint(cfg.text.vocab, (1, bucket), generator=generator)
    last = int(torch.randint(bucket // 2, bucket, (1,), generator=generator))
    ids[:, last + 1 :] = cfg.prompt.pad_id
    state = torch.zeros(1, cfg.padded_state_dim)
    state[:, : cfg.state_dim] = torch.randn(1, cfg.state_dim, generator=generator)
    return {
        "images": 0.8 * coarse + 0.2 * fine,
        "input_ids": ids,
        "last": torch.tensor([last]),
        "state": state,
        "noise": torch.randn(1, cfg.horizon, cfg.padded_action_dim, generator=generator),
    }
