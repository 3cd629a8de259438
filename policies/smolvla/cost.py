"""What a SmolVLA policy costs under a plan: parameters, operations, bytes of weights. From sizes
alone, no torch.

Operations are those of matrix products (2 m n k), batch 1, as the exported stages compute them: the
deepest decoder layer for its keys and values only, projections of the prefix's keys and values
once, the expert at every full Euler step. The expert's keys are as many as for the longest prompt,
whatever the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from trimvla.policies.sizes.cost import Cost, block_cost, linear, report_of
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.kept import (
    blocks,
    euler_steps,
    expert_channels,
    full_steps,
    image_side,
    kept_experts,
    kept_prefix,
    prefix_channels,
    tokens_seen,
    visual_rows,
)
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

NONE = Cost(0, 0)


def cost(
    cfg: SmolVlaConfig, plan: Plan, cameras: int | None = None, prompt: int | None = None
) -> CostReport:
    """See `Family.cost`; `acting_parameters` are those of the dense policy that an action depends
    on.

    Raises:
        ConfigError: more cameras than the config has, a prompt beyond its longest bucket, or less
            than one of either.
    """
    cfg = with_cameras(cfg, cameras)
    ids = cfg.prompt.buckets[0] if prompt is None else prompt
    if not 1 <= ids <= cfg.prompt.longest:
        raise ConfigError(f"expected a prompt of 1 to {cfg.prompt.longest} ids, got {ids}")
    stages = stage_costs(cfg, plan, ids)
    reads = weight_reads(cfg, plan)
    acting = sum(stage_costs(cfg, Plan(), ids).values(), NONE).parameters
    return report_of(stages, acting + dead_parameters(cfg), acting=acting, reads=reads)


def with_cameras(cfg: SmolVlaConfig, cameras: int | None) -> SmolVlaConfig:
    """The config with its first cameras; ConfigError where it has fewer."""
    if cameras is None:
        return cfg
    if not 1 <= cameras <= len(cfg.cameras):
        raise ConfigError(
            f"expected 1 to {len(cfg.cameras)} cameras for '{cfg.name}', got {cameras}"
        )
    return msgspec.structs.replace(cfg, cameras=cfg.cameras[:cameras])


def stage_costs(cfg: SmolVlaConfig, plan: Plan, prompt: int) -> dict[str, Cost]:
    """Cost of each exported stage for a prompt of `prompt` ids, padding included."""
    return {
        "vision": vision_cost(cfg, plan),
        "language": language_cost(cfg, plan, prompt),
        "action": action_cost(cfg, plan),
    }


def weight_reads(cfg: SmolVlaConfig, plan: Plan) -> dict[str, int]:
    """Weights that one action chunk reads from memory: rows of the table only, the expert's at
    every full step.
    """
    costs = stage_costs(cfg, plan, 1)
    table = cfg.text.vocab * cfg.text.width
    layers = sum(_expert_layers(cfg, plan), NONE).parameters
    ends = costs["action"].parameters - layers
    return {
        "vision": costs["vision"].parameters,
        "language": costs["language"].parameters - table,
        "action": layers * full_steps(plan, cfg) + ends * euler_steps(plan, cfg),
    }


# --- vision ---


def vision_cost(cfg: SmolVlaConfig, plan: Plan) -> Cost:
    """The encoder on every camera's image, and the map into the decoder's width."""
    vit = cfg.vision
    cameras = len(cfg.cameras)
    patches = (image_side(plan, cfg) // vit.patch_size) ** 2
    tokens = len(tokens_seen(plan, cfg))
    unit = cfg.shuffle**2
    dropped = None if plan.vision is None else plan.vision.patches
    first = len(blocks(plan, cfg)) if dropped is None else dropped.after
    layers = [
        block_cost(vit.width, vit.mlp_hidden, patches if index < first else unit * tokens)
        for index in range(len(blocks(plan, cfg)))
    ]
    norms = Cost((4 * len(layers) + 2) * vit.width + vit.patches * vit.width, 0)
    ends = linear(3 * vit.patch_size**2, vit.width, patches)
    ends += linear(unit * vit.width, cfg.text.width, tokens, bias=False)
    one = sum(layers, ends + norms)
    return Cost(one.parameters, cameras * one.flops)


# --- language ---


def language_cost(cfg: SmolVlaConfig, plan: Plan, prompt: int) -> Cost:
    """The table, the state's row, the layers that run, and what cross-attention reads of them."""
    text = cfg.text
    table = Cost(text.vocab * text.width, 0)
    state = linear(cfg.padded_state_dim, text.width, 1)
    layers = sum(_prefix_layers(cfg, plan, prompt), table + state)
    return layers + sum(_projections(cfg, plan, prompt), NONE) + _scores(cfg, plan, prompt)


def _prefix_layers(cfg: SmolVlaConfig, plan: Plan, prompt: int) -> Iterator[Cost]:
    text = cfg.text
    channels = prefix_channels(plan, cfg)
    kept = kept_prefix(plan, cfg)
    inner = text.heads * text.head_dim
    for place, index in enumerate(kept):
        n = _rows(place, cfg, plan, prompt)
        yield linear(text.width, 2 * text.kv_width, n, bias=False) + Cost(text.width, 0)
        if place == len(kept) - 1:
            return
        chosen = channels[index]
        hidden = text.mlp_hidden if chosen is None else len(chosen)
        maps = linear(text.width, 2 * inner + 3 * hidden, n, bias=False)
        yield maps + Cost(text.width, 4 * n * n * inner)


def _rows(place: int, cfg: SmolVlaConfig, plan: Plan, prompt: int) -> int:
    """Rows of the sequence in the layer at this place among those that run."""
    tokens = plan.tokens
    visual = visual_rows(plan, cfg) if tokens is None or place < tokens.after else tokens.keep
    return visual + 1 + prompt


def _projections(cfg: SmolVlaConfig, plan: Plan, prompt: int) -> Iterator[Cost]:
    """Keys and values of the expert layers that look at the prefix alone."""
    kept = kept_prefix(plan, cfg)
    width = cfg.text.kv_width
    for index in kept_experts(plan, cfg):
        if not cfg.expert.attends_to_actions(index):
            n = _rows(kept.index(index), cfg, plan, prompt)
            yield linear(width, 2 * width, n, bias=False)


def _scores(cfg: SmolVlaConfig, plan: Plan, prompt: int) -> Cost:
    """The attention that is worked out once more to choose tokens, and diversity's cosines."""
    tokens = plan.tokens
    text = cfg.text
    if tokens is None or tokens.scored is None:
        return NONE
    n = visual_rows(plan, cfg) + 1 + prompt
    inner = text.heads * text.head_dim
    if tokens.source == "expert":
        flops = _looked(cfg, plan, n)
    else:
        rows = 1 if tokens.scored == "state" else prompt
        flops = 2 * rows * n * inner + 2 * text.width * (rows * inner + n * text.kv_width)
    if tokens.selector == "efficientvla":
        flops += 2 * visual_rows(plan, cfg) * tokens.key * text.width
    return Cost(0, flops)


def _looked(cfg: SmolVlaConfig, plan: Plan, n: int) -> int:
    """Operations of the expert up to the attention of its first layer that looks at the prefix
    alone.
    """
    flops = _ends(cfg).flops
    inner = cfg.text.heads * cfg.text.head_dim
    for index, layer in zip(
        kept_experts(plan, cfg), _expert_layers(cfg, plan, keys=n), strict=True
    ):
        if not cfg.expert.attends_to_actions(index):
            return flops + 2 * cfg.horizon * inner * (cfg.expert.width + n)
        flops += layer.flops
    return flops


# --- action ---


def action_cost(cfg: SmolVlaConfig, plan: Plan) -> Cost:
    """All Euler steps: embedding and output map at each, layers at the full ones; a constant a step
    for its time.
    """
    layers = sum(_expert_layers(cfg, plan), NONE)
    ends = _ends(cfg)
    steps = euler_steps(plan, cfg)
    return Cost(
        layers.parameters + ends.parameters,
        layers.flops * full_steps(plan, cfg) + ends.flops * steps,
    )


def _expert_layers(cfg: SmolVlaConfig, plan: Plan, keys: int | None = None) -> Iterator[Cost]:
    """Every kept layer at one step, over `keys` of the prefix, or as many as the layer has."""
    text = cfg.text
    width = cfg.expert.width
    rows = cfg.horizon
    inner = text.heads * text.head_dim
    channels = expert_channels(plan, cfg)
    kept = kept_prefix(plan, cfg)
    for index in kept_experts(plan, cfg):
        chosen = channels[index]
        hidden = cfg.expert.mlp_hidden if chosen is None else len(chosen)
        n = _rows(kept.index(index), cfg, plan, cfg.prompt.longest) if keys is None else keys
        maps = linear(width, 2 * inner + 3 * hidden, rows, bias=False) + Cost(2 * width, 0)
        if cfg.expert.attends_to_actions(index):
            maps += linear(width, 2 * text.kv_width, rows, bias=False)
            n += rows
        yield maps + Cost(0, 4 * rows * n * inner)


def _ends(cfg: SmolVlaConfig) -> Cost:
    """Everything of one step but the layers."""
    width = cfg.expert.width
    rows = cfg.horizon
    dim = cfg.padded_action_dim
    outer = linear(dim, width, rows) + linear(width, dim, rows) + Cost(width, 0)
    return outer + linear(2 * width, width, rows) + linear(width, width, rows)


# --- the checkpoint ---


def dead_parameters(cfg: SmolVlaConfig) -> int:
    """Parameters that a checkpoint stores and no action depends on: see `layout.dead_names`."""
    text = cfg.text
    deepest = 2 * text.width * text.heads * text.head_dim + 3 * text.width * text.mlp_hidden
    return text.vocab * text.width + deepest + 2 * text.width
