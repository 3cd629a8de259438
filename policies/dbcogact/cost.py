"""What a DB-CogACT policy costs under a plan: parameters, operations, bytes of weights.

From sizes alone. Operations are those of matrix products (2 m n k), batch 1, as the exported stages
compute them: the text before the image is folded into keys and values, which rows look at but
which nothing computes; the last layer computes the cognition position only; both guidance halves,
every sampler step. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from trimvla.policies.dbcogact.config import DbCogActConfig
from trimvla.policies.sizes.cost import (
    Cost,
    Shape,
    action_cost,
    linear,
    report_of,
    shape_of,
    vit_cost,
)
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import ConfigError

NONE = Cost(0, 0)


def cost(
    cfg: DbCogActConfig, plan: Plan, cameras: int | None = None, prompt: int | None = None
) -> CostReport:
    """See `Family.cost`; `weights_read` are those that one action chunk reads from memory.

    Raises:
        ConfigError: less than one camera or id.
    """
    if cameras is not None:
        if cameras < 1:
            raise ConfigError(f"expected at least 1 camera for '{cfg.name}', got {cameras}")
        names = tuple(f"camera{index + 1}" for index in range(cameras))
        cfg = msgspec.structs.replace(cfg, cameras=names)
    ids = cfg.prompt.buckets[0] if prompt is None else prompt
    if ids < 1:
        raise ConfigError(f"expected a prompt of at least 1 id, got {ids}")
    shape = shape_of(cfg, plan)  # pyright: ignore[reportArgumentType]
    stages = stage_costs(cfg, shape, ids)
    reads = weight_reads(cfg, shape, stages)
    return report_of(
        stages,
        acting_parameters(cfg) + dead_parameters(cfg),
        acting=acting_parameters(cfg),
        reads=reads,
    )


def stage_costs(cfg: DbCogActConfig, shape: Shape, prompt: int) -> dict[str, Cost]:
    """Cost of each exported stage for `prompt` ids behind the image."""
    return {
        "vision": vision_cost(cfg),
        "language": language_cost(cfg, shape, prompt, folded=len(cfg.prompt.before_ids)),
        "action": action_cost(cfg, shape),  # pyright: ignore[reportArgumentType]
    }


def weight_reads(cfg: DbCogActConfig, shape: Shape, stages: dict[str, Cost]) -> dict[str, int]:
    """Rows of the table are looked up; the head is read at every step that runs its blocks."""
    table = cfg.language.vocab * cfg.language.width
    return {
        "vision": stages["vision"].parameters,
        "language": stages["language"].parameters - table,
        "action": stages["action"].parameters * shape.full_steps,
    }


def vision_cost(cfg: DbCogActConfig) -> Cost:
    """CLIP up to its feature layer and the projector, for every camera."""
    vit = cfg.vision
    patch_bias = vit.width
    ends = Cost(2 * vit.width - patch_bias, 0)  # the norm before the first layer; no patch bias
    widths = (vit.width, *cfg.projector.hidden, cfg.language.width)
    maps = [linear(a, b, vit.patches) for a, b in pairwise(widths)]
    one = sum(maps, vit_cost(vit) + ends)
    positions = vit.width  # of the class token
    return Cost(one.parameters + positions, len(cfg.cameras) * one.flops)


def language_cost(cfg: DbCogActConfig, shape: Shape, prompt: int, folded: int) -> Cost:
    """Table, kept layers, final norm and the folded keys and values."""
    language = cfg.language
    kv_width = language.kv_heads * language.head_dim
    table = Cost(language.vocab * language.width + language.width, 0)
    kept = Cost(2 * len(shape.mlp) * folded * kv_width, 0)
    scores = _scores(cfg, shape.tokens, prompt, folded)
    return sum((*_layers(cfg, shape, prompt, folded), scores), table + kept)


def _layers(cfg: DbCogActConfig, shape: Shape, prompt: int, folded: int) -> Iterator[Cost]:
    tokens = shape.tokens
    for index, hidden in enumerate(shape.mlp):
        dropped = tokens is not None and index >= tokens.after
        visual = tokens.keep if tokens is not None and dropped else cfg.patches
        n = prompt + visual
        rows = 1 if index == len(shape.mlp) - 1 else n  # the last layer computes one position
        yield layer_cost(cfg, hidden, n=n, rows=rows, keys=folded + n)


def layer_cost(cfg: DbCogActConfig, hidden: int, *, n: int, rows: int, keys: int) -> Cost:
    """One layer over n positions that computes `rows` of them, which look at `keys`."""
    language = cfg.language
    width = language.width
    kv_width = language.kv_heads * language.head_dim
    projections = linear(width, 2 * kv_width, n) + linear(width, width, rows)
    others = linear(width, width, rows, bias=False) + Cost(0, 4 * rows * keys * width)
    mlp = linear(width, 3 * hidden, rows, bias=False)
    return projections + others + mlp + Cost(2 * width, 0)


def _scores(cfg: DbCogActConfig, tokens: TokenPlan | None, prompt: int, folded: int) -> Cost:
    """The extra score rows, and diversity's cosines."""
    if tokens is None or tokens.scored is None:
        return NONE
    width = cfg.language.width
    n = prompt + cfg.patches
    flops = 2 * prompt * (folded + n) * width
    if tokens.selector == "efficientvla":
        flops += 2 * cfg.patches * tokens.key * width
    if tokens.source == "next":
        kv_width = cfg.language.kv_heads * cfg.language.head_dim
        flops += 2 * prompt * width * width + 2 * n * width * kv_width
    return Cost(0, flops)


def acting_parameters(cfg: DbCogActConfig) -> int:
    """Parameters of the dense policy that an action depends on."""
    shape = shape_of(cfg, Plan())  # pyright: ignore[reportArgumentType]
    language = language_cost(cfg, shape, 1, folded=0)
    action = action_cost(cfg, shape)  # pyright: ignore[reportArgumentType]
    return vision_cost(cfg).parameters + language.parameters + action.parameters


def dead_parameters(cfg: DbCogActConfig) -> int:
    """Parameters that a checkpoint stores and no action depends on: see `layout.dead_weights`."""
    vit = cfg.vision
    width = vit.width
    layer = 4 * width * width + 4 * width + 2 * width * vit.mlp_hidden + vit.mlp_hidden + width
    later = (vit.depth - vit.feature_block - 1) * (layer + 4 * width)
    history = cfg.head.action_dim * cfg.head.width + cfg.head.width
    return later + 2 * width + history + cfg.language.vocab * cfg.language.width
