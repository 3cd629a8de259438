"""What a pi0 or pi0.5 policy costs under a plan: parameters, operations, bytes of weights; and the
memory that its engines need. From sizes alone, no torch.

Operations are those of matrix products (2 m n k), batch 1, as the exported stages compute them: the
deepest decoder layer for its keys and values only, the expert at every full Euler step, the state's
row once, everything that depends on the time alone never. The expert's keys are as many as for the
longest prompt, whatever the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.kept import (
    euler_steps,
    expert_masks,
    kept_blocks,
    kept_experts,
    kept_prefix,
    prefix_masks,
    visual_tokens,
)
from trimvla.policies.sizes.cost import Cost, block_cost, linear, report_of
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.policies.sizes.memory import (
    WORKSPACE_BYTES,
    MemoryPlan,
    block_elements,
    memory_of,
    vit_elements,
)
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

NONE = Cost(0, 0)


def cost(
    cfg: Pi0Config, plan: Plan, cameras: int | None = None, prompt: int | None = None
) -> CostReport:
    """See `Family.cost`; `acting_parameters` are those of the dense policy that an action depends
    on.

    Raises:
        ConfigError: more cameras than the config has, a prompt beyond its longest bucket, or less
            than one of either.
    """
    cfg = _with_cameras(cfg, cameras)
    longest = cfg.prompt.longest
    ids = cfg.prompt.buckets[0] if prompt is None else prompt
    if not 1 <= ids <= longest:
        raise ConfigError(f"expected a prompt of 1 to {longest} ids, got {ids}")
    stages = stage_costs(cfg, plan, ids)
    reads = weight_reads(cfg, plan, ids)
    acting = acting_parameters(cfg)
    return report_of(stages, acting + dead_parameters(cfg), acting=acting, reads=reads)


def _with_cameras(cfg: Pi0Config, cameras: int | None) -> Pi0Config:
    """The config with its first cameras."""
    if cameras is None:
        return cfg
    if not 1 <= cameras <= len(cfg.cameras):
        raise ConfigError(
            f"expected 1 to {len(cfg.cameras)} cameras for '{cfg.name}', got {cameras}"
        )
    return cfg.with_cameras(cfg.cameras[:cameras])


def stage_costs(cfg: Pi0Config, plan: Plan, prompt: int) -> dict[str, Cost]:
    """Cost of each exported stage for a prompt of `prompt` ids, padding included."""
    return {
        "vision": vision_cost(cfg, plan),
        "language": language_cost(cfg, plan, prompt),
        "action": action_cost(cfg, plan),
    }


def weight_reads(cfg: Pi0Config, plan: Plan, prompt: int) -> dict[str, int]:
    """Weights that one action chunk reads from memory: the table's rows only, the expert's at every
    full step.
    """
    costs = stage_costs(cfg, plan, prompt)
    table = cfg.language.vocab * cfg.language.width
    layers = sum((layer.parameters for layer in _expert_layers(cfg, plan, 1, 0)), 0)
    steps = euler_steps(plan, cfg)
    ends = costs["action"].parameters - layers
    return {
        "vision": costs["vision"].parameters,
        "language": costs["language"].parameters - table,
        "action": layers * _full_steps(cfg, plan) + ends * steps,
    }


# --- vision ---


def vision_cost(cfg: Pi0Config, plan: Plan) -> Cost:
    """The encoder on every camera's image, and the map into the decoder's width."""
    vit = cfg.vision
    cameras = len(cfg.cameras)
    patches = None if plan.vision is None else plan.vision.patches
    blocks = [
        block_cost(vit.width, vit.mlp_hidden, _tokens_at(index, plan, cfg)) + Cost(4 * vit.width, 0)
        for index in range(kept_blocks(plan, cfg))
    ]
    out = cfg.patches if patches is None else patches.keep
    ends = linear(3 * vit.patch_size**2, vit.width, vit.patches)
    ends += linear(vit.width, cfg.language.width, out)
    one = sum(blocks, ends + Cost(vit.patches * vit.width + 2 * vit.width, 0))
    return Cost(one.parameters, cameras * one.flops)


def _tokens_at(block: int, plan: Plan, cfg: Pi0Config) -> int:
    """Patches that a kept block sees."""
    patches = None if plan.vision is None else plan.vision.patches
    return cfg.patches if patches is None or block < patches.after else patches.keep


# --- language ---


def language_cost(cfg: Pi0Config, plan: Plan, prompt: int) -> Cost:
    """The table and the kept layers, the deepest without queries and MLP."""
    table = Cost(cfg.language.vocab * cfg.language.width, 0)
    return sum((*_prefix_layers(cfg, plan, prompt), _scores(cfg, plan, prompt)), table)


def _prefix_layers(cfg: Pi0Config, plan: Plan, prompt: int) -> Iterator[Cost]:
    width = cfg.language.width
    language = cfg.language
    masks = prefix_masks(plan, cfg)
    kept = kept_prefix(plan, cfg)
    for place, index in enumerate(kept):
        dropped = plan.tokens is not None and place >= plan.tokens.after
        n = prompt + (plan.tokens.keep if plan.tokens and dropped else visual_tokens(plan, cfg))
        if place == len(kept) - 1:
            yield linear(width, 2 * language.kv_heads * language.head_dim, n, bias=False)
            yield Cost(width, 0)
        else:
            mask = masks[index]
            hidden = language.mlp_hidden if mask is None else len(mask)
            yield layer_cost(cfg, width, hidden, rows=n, keys=n) + Cost(2 * width, 0)


def layer_cost(cfg: Pi0Config, width: int, hidden: int, *, rows: int, keys: int) -> Cost:
    """One Gemma layer without its norms: `rows` look at `keys`."""
    language = cfg.language
    inner = language.heads * language.head_dim
    narrow = 2 * language.kv_heads * language.head_dim
    maps = linear(width, inner, rows, bias=False) + linear(inner, width, rows, bias=False)
    maps += linear(width, narrow, rows, bias=False) + linear(width, 3 * hidden, rows, bias=False)
    return maps + Cost(0, 4 * rows * keys * inner)


def _scores(cfg: Pi0Config, plan: Plan, prompt: int) -> Cost:
    """The attention that is worked out once more to choose tokens, and diversity's cosines."""
    tokens = plan.tokens
    language = cfg.language
    if tokens is None or tokens.scored is None:
        return NONE
    n = prompt + visual_tokens(plan, cfg)
    width = language.width
    inner = language.heads * language.head_dim
    flops = 2 * n * n * inner + 2 * n * width * (inner + language.kv_heads * language.head_dim)
    if tokens.selector == "efficientvla":
        flops += 2 * visual_tokens(plan, cfg) * tokens.key * width
    return Cost(0, flops)


# --- action ---


def action_cost(cfg: Pi0Config, plan: Plan) -> Cost:
    """All Euler steps: embedding and output map at each, layers at the full ones, the state's row
    at the first.
    """
    rows = cfg.horizon
    steps = euler_steps(plan, cfg)
    full = _full_steps(cfg, plan)
    state = int(cfg.has_state_token)
    first = sum(_expert_layers(cfg, plan, rows + state, state), NONE)
    others = sum(_expert_layers(cfg, plan, rows, state), NONE)
    ends = _expert_ends(cfg, rows)
    return Cost(
        first.parameters + ends.parameters + _state_parameters(cfg) + _constants(cfg, plan),
        first.flops + (full - 1) * others.flops + steps * ends.flops + _state_flops(cfg),
    )


def _full_steps(cfg: Pi0Config, plan: Plan) -> int:
    return euler_steps(plan, cfg) if plan.recompute is None else len(plan.recompute)


def _expert_layers(cfg: Pi0Config, plan: Plan, rows: int, state: int) -> Iterator[Cost]:
    """Every kept layer over `rows`; `state` rows are among the keys besides the actions."""
    width = cfg.expert.width
    masks = expert_masks(plan, cfg)
    places = {index: place for place, index in enumerate(kept_prefix(plan, cfg))}
    for index in kept_experts(plan, cfg):
        mask = masks[index]
        hidden = cfg.expert.mlp_hidden if mask is None else len(mask)
        dropped = plan.tokens is not None and places[index] >= plan.tokens.after
        visual = plan.tokens.keep if plan.tokens and dropped else visual_tokens(plan, cfg)
        keys = visual + cfg.prompt.longest + cfg.horizon + state
        norms = 2 * width if cfg.has_state_token else 0
        yield layer_cost(cfg, width, hidden, rows=rows, keys=keys) + Cost(norms, 0)


def _expert_ends(cfg: Pi0Config, rows: int) -> Cost:
    """Everything of one step but the layers."""
    width = cfg.expert.width
    dim = cfg.padded_action_dim
    ends = linear(dim, width, rows) + linear(width, dim, rows)
    if not cfg.has_state_token:
        return ends
    mixing = linear(width, width, rows, bias=False) + linear(width, width, rows)
    return ends + mixing + Cost(width, 0)


def _state_parameters(cfg: Pi0Config) -> int:
    return cfg.padded_state_dim * cfg.expert.width + cfg.expert.width if cfg.has_state_token else 0


def _state_flops(cfg: Pi0Config) -> int:
    return 2 * cfg.padded_state_dim * cfg.expert.width if cfg.has_state_token else 0


def _constants(cfg: Pi0Config, plan: Plan) -> int:
    """Numbers that stand for the time: per step, what it adds to the actions, or the modulation of
    every norm.
    """
    steps = euler_steps(plan, cfg)
    width = cfg.expert.width
    if cfg.has_state_token:
        return steps * width
    return steps * (2 * len(kept_experts(plan, cfg)) + 1) * 3 * width


# --- the checkpoint ---


def acting_parameters(cfg: Pi0Config) -> int:
    """Parameters of the dense policy that an action depends on."""
    dense = Plan()
    stages = sum(stage_costs(cfg, dense, 1).values(), NONE).parameters - _constants(cfg, dense)
    width = cfg.expert.width
    time = width * width + width
    if cfg.has_state_token:
        return stages + time  # the time's half of the first matrix
    norms = (2 * cfg.language.layers + 1) * (3 * width * width + 3 * width)
    return stages + 2 * time + norms


def dead_parameters(cfg: Pi0Config) -> int:
    """Parameters that a checkpoint stores and no action depends on: see `layout.dead_names`; the
    tied table once.
    """
    language = cfg.language
    deepest = 2 * language.width * language.heads * language.head_dim
    deepest += 3 * language.width * language.mlp_hidden + language.width
    return deepest + language.width + language.vocab * cfg.expert.width


# --- memory ---


def memory(
    cfg: Pi0Config,
    plan: Plan,
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """See `Family.memory`."""
    costs = stage_costs(cfg, plan, cfg.prompt.longest)
    table = cfg.language.vocab * cfg.language.width
    return memory_of(costs, table, activation_elements(cfg, plan), precision, backend, workspace)


def activation_elements(cfg: Pi0Config, plan: Plan) -> dict[str, int]:
    """Numbers that live at once at each stage's widest point, if nothing is fused: an upper
    estimate.

    Images of all cameras are one batch; the language stage holds the keys and values of its layers
    until it ends, and the action stage those that it is given.
    """
    vit = cfg.vision
    language = cfg.language
    expert = cfg.expert
    rows = visual_tokens(plan, cfg) + cfg.prompt.longest
    read = 2 * len(kept_experts(plan, cfg)) * rows * language.kv_heads * language.head_dim
    suffix = cfg.horizon + int(cfg.has_state_token)
    heads = language.heads
    step = block_elements(suffix, expert.width, expert.mlp_hidden, heads, rows + suffix)
    return {
        "vision": len(cfg.cameras) * (vit_elements(vit) + vit.patches * vit.width),
        "language": block_elements(rows, language.width, language.mlp_hidden, heads) + read,
        "action": step + read,
    }
