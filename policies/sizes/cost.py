"""What a policy costs under a plan: parameters, floating-point operations, bytes of weights.

From sizes alone.

Operations are those of matrix products (one multiplication and one addition each: 2 m n k), batch
1, as the exported stages really compute them: the last language layer for the cognition position
only, both guidance halves, every sampler step, prompts padded to a bucket. Norms, softmax and
activations are left out, as torch's counter leaves them out. Knows no weights and no time, and
needs no torch: a robot states its floor too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from trimvla.policies.sizes.config import HeadConfig, PolicyConfig, VitConfig
from trimvla.policies.sizes.cost_report import CostReport, StageCost
from trimvla.runtime.bundle.plan import Plan, TokenPlan, unmask
from trimvla.runtime.bundle.vision_plan import PatchPlan
from trimvla.runtime.errors import ConfigError

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """All of a plan that costs depend on."""

    mlp: tuple[int, ...]
    """MLP width of each kept language layer."""
    tokens: TokenPlan | None
    full_steps: int
    """Sampler steps that run the head's blocks."""
    steps: int
    guided: bool
    patches: PatchPlan | None = None
    """Patches that leave inside the encoders."""


@dataclass(frozen=True)
class Cost:
    """One stage: parameters that it holds, operations for one action chunk."""

    parameters: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.flops + other.flops)


def kept_count(hidden: int, keep: float) -> int:
    """Channels that a share of `hidden` is; ConfigError outside (0, 1]."""
    if not 0.0 < keep <= 1.0:
        raise ConfigError(f"expected a share of MLP channels above 0 and up to 1, got {keep}")
    return max(1, round(keep * hidden))


def shape_of(cfg: PolicyConfig, plan: Plan) -> Shape:
    """The shape of a policy under a plan."""
    hidden = cfg.language.mlp_hidden
    language = cfg.language.layers
    layers = language if plan.layers is None else len(plan.layers)
    mlp = (
        (hidden,) * layers
        if plan.channels is None
        else tuple(len(unmask(text)) for text in plan.channels)
    )
    steps = cfg.diffusion.inference_steps if plan.steps is None else plan.steps
    full = steps if plan.recompute is None else len(plan.recompute)
    guidance = plan.guidance_scale(cfg.diffusion.guidance)
    patches = None if plan.vision is None else plan.vision.patches
    return Shape(mlp, plan.tokens, full, steps, guidance > 1.0, patches)


def visual_tokens(patches: int, plan: Plan) -> int:
    """Visual tokens that the encoders give of `patches` of one image."""
    dropped = None if plan.vision is None else plan.vision.patches
    return patches if dropped is None else dropped.keep


def shape_by_counts(
    cfg: PolicyConfig,
    *,
    layers: int | None = None,
    mlp_keep: float = 1.0,
    tokens: TokenPlan | None = None,
    cache_interval: int = 1,
    steps: int | None = None,
) -> Shape:
    """The shape that so many layers, such a share of their MLP channels and such an interval would
    give.

    Raises:
        ConfigError: more is to be kept than there is, or nothing.
    """
    language = cfg.language
    kept = language.layers if layers is None else layers
    if not 1 <= kept <= language.layers:
        raise ConfigError(
            f"expected from 1 to {language.layers} language layers to keep, got {kept}"
        )
    if tokens is not None and tokens.keep > cfg.patches:
        raise ConfigError(
            f"expected at most {cfg.patches} visual tokens to keep, got {tokens.keep}"
        )
    ran = cfg.diffusion.inference_steps if steps is None else steps
    if not 1 <= cache_interval <= ran:
        raise ConfigError(
            f"expected a cache interval from 1 to {ran} (the DDIM steps), got {cache_interval}"
        )
    width = kept_count(language.mlp_hidden, mlp_keep)
    return Shape(
        (width,) * kept, tokens, -(-ran // cache_interval), ran, cfg.diffusion.guidance > 1.0
    )


def stage_costs(cfg: PolicyConfig, shape: Shape, prompt: int) -> dict[str, Cost]:
    """Cost of each exported stage for a prompt of `prompt` ids."""
    return {
        "vision": vision_cost(cfg, shape.patches),
        "language": language_cost(cfg, shape, prompt),
        "action": action_cost(cfg, shape),
    }


def report(cfg: PolicyConfig, shape: Shape, prompt: int | None = None) -> CostReport:
    """Everything, with weights in float32.

    Args:
        cfg: the policy's sizes.
        shape: what is kept; see `shape_of` and `shape_by_counts`.
        prompt: ids in the prompt, padding included; the smallest bucket when left out.
    """
    costs = stage_costs(cfg, shape, cfg.prompt.buckets[0] if prompt is None else prompt)
    parameters = sum(cost.parameters for cost in costs.values()) + dead_parameters(cfg)
    return report_of(costs, parameters)


def report_of(
    costs: Mapping[str, Cost],
    parameters: int,
    *,
    acting: int | None = None,
    reads: Mapping[str, int] | None = None,
) -> CostReport:
    """The costs of all stages as one report, with weights in float32.

    Args:
        costs: stage -> its cost.
        parameters: of the whole checkpoint as published.
        acting: those of the dense policy that an action depends on.
        reads: stage -> weights that one action chunk reads from memory.
    """
    total = sum(costs.values(), Cost(0, 0))
    return CostReport(
        parameters=parameters,
        flops=total.flops,
        weight_bytes=FLOAT32_BYTES * total.parameters,
        stages={
            name: StageCost(
                parameters=cost.parameters,
                flops=cost.flops,
                weight_bytes=FLOAT32_BYTES * cost.parameters,
                weights_read=None if reads is None else reads[name],
            )
            for name, cost in costs.items()
        },
        acting_parameters=acting,
    )


def linear(fan_in: int, fan_out: int, rows: int, bias: bool = True) -> Cost:
    """A linear map applied to so many rows."""
    return Cost(fan_in * fan_out + fan_out * bias, 2 * rows * fan_in * fan_out)


def block_cost(width: int, hidden: int, tokens: int) -> Cost:
    """Fused qkv, bidirectional attention, projection, two-layer MLP; no norms."""
    mixing = Cost(0, 4 * tokens * tokens * width)
    maps = ((width, 3 * width), (width, width), (width, hidden), (hidden, width))
    return sum((linear(a, b, tokens) for a, b in maps), mixing)


def vision_cost(cfg: PolicyConfig, patches: PatchPlan | None = None) -> Cost:
    """All encoders up to their feature blocks, the projector and the learned positions."""
    widths = (cfg.vision_width, *cfg.projector.hidden, cfg.language.width)
    given = cfg.patches if patches is None else patches.keep
    maps = (linear(a, b, given) for a, b in pairwise(widths))
    positions = Cost(cfg.patches * cfg.language.width * cfg.visual_position, 0)
    return sum((*(vit_cost(vit, patches) for vit in cfg.vision), *maps), positions)


def vit_cost(vit: VitConfig, dropped: PatchPlan | None = None) -> Cost:
    """One encoder up to its feature block; `dropped` are the patches that leave on the way."""
    norms = 4 * vit.width + 2 * vit.width * vit.layer_scale
    block = block_cost(vit.width, vit.mlp_hidden, vit.prefix + vit.patches) + Cost(norms, 0)
    count = vit.feature_block + 1
    tokens = Cost((vit.patches + vit.prefix) * vit.width, 0)
    patches = linear(3 * vit.patch_size**2, vit.width, vit.patches)
    full = count if dropped is None else dropped.after
    fewer = vit.patches if dropped is None else dropped.keep
    later = block_cost(vit.width, vit.mlp_hidden, vit.prefix + fewer)
    flops = full * block.flops + (count - full) * later.flops
    return tokens + patches + Cost(count * block.parameters, flops)


def language_cost(cfg: PolicyConfig, shape: Shape, prompt: int) -> Cost:
    """Embedding, kept layers, final norm; full length until tokens are dropped."""
    language = cfg.language
    table = Cost(language.vocab * language.width + language.width, 0)
    return sum((*_layers(cfg, shape, prompt), _scores(cfg, shape, prompt)), table)


def _layers(cfg: PolicyConfig, shape: Shape, prompt: int) -> Iterator[Cost]:
    """One decoder layer after the other."""
    width = cfg.language.width
    tokens = shape.tokens
    visual = cfg.patches if shape.patches is None else shape.patches.keep
    for index, hidden in enumerate(shape.mlp):
        dropped = tokens is not None and index >= tokens.after
        n = prompt + (tokens.keep if tokens is not None and dropped else visual)
        # the last layer computes the cognition position only
        rows = 1 if index == len(shape.mlp) - 1 else n
        yield decoder_layer_cost(width, hidden, n, rows)


def decoder_layer_cost(width: int, hidden: int, n: int, rows: int) -> Cost:
    """One layer over n positions that computes `rows` of them."""
    keys = linear(width, 2 * width, n, bias=False)
    others = linear(width, 2 * width, rows, bias=False) + Cost(0, 4 * rows * n * width)
    return keys + others + linear(width, 3 * hidden, rows, bias=False) + Cost(2 * width, 0)


def _scores(cfg: PolicyConfig, shape: Shape, prompt: int) -> Cost:
    """The extra score rows, and diversity's cosines."""
    tokens = shape.tokens
    visual = cfg.patches if shape.patches is None else shape.patches.keep
    if tokens is None or tokens.scored is None:
        return Cost(0, 0)
    width = cfg.language.width
    rows = prompt - 1
    n = prompt + visual
    flops = 2 * rows * n * width
    if tokens.selector == "efficientvla":
        flops += 2 * visual * tokens.key * width
    if tokens.source == "next":
        flops += 2 * (rows + n) * width * width
    return Cost(0, flops)


def action_cost(cfg: PolicyConfig, shape: Shape) -> Cost:
    """The whole sampler: embedding and final layer at every step, blocks at the full steps."""
    head = cfg.head
    batch = 1 + shape.guided
    rows = batch * (head.horizon + 1)
    block = _head_block(head)
    ends = _head_ends(cfg, batch, rows)
    blocks = Cost(
        head.depth * block.parameters, shape.full_steps * head.depth * block.flops * batch
    )
    free = cfg.language.width + (head.horizon + 1) * head.width  # no condition, positions
    return Cost(ends.parameters + free, shape.steps * ends.flops) + blocks


def _head_block(head: HeadConfig) -> Cost:
    return block_cost(head.width, int(head.width * head.mlp_ratio), head.horizon + 1)


def _head_ends(cfg: PolicyConfig, batch: int, rows: int) -> Cost:
    """Everything of the head but its blocks, for one step."""
    head = cfg.head
    w = cfg.head.width
    time = linear(head.frequency, w, batch) + linear(w, w, batch)
    actions = linear(head.action_dim, w, batch * head.horizon) + linear(w, head.action_dim, rows)
    return time + linear(cfg.language.width, w, batch) + actions


def dead_parameters(cfg: PolicyConfig) -> int:
    """Parameters that a published checkpoint stores and that never reach an action: see
    `layout.dead_weights`.
    """
    head = cfg.head
    history = head.action_dim * head.width + head.width
    return cfg.language.vocab * cfg.language.width + history + sum(map(_dead_in_vit, cfg.vision))


def _dead_in_vit(vit: VitConfig) -> int:
    """Later blocks, the final norm, the attention pool."""
    w = vit.width
    block = block_cost(w, vit.mlp_hidden, 0).parameters + 4 * w + 2 * w * vit.layer_scale
    pool = block_cost(w, vit.mlp_hidden, 0).parameters + 3 * w if vit.attention_pool else 0
    return (vit.depth - vit.feature_block - 1) * block + 2 * w + pool
