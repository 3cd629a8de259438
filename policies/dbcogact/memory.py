"""How much memory a DB-CogACT policy's engines need under a plan. From sizes alone, no torch."""

from __future__ import annotations

from trimvla.policies.dbcogact.config import DbCogActConfig
from trimvla.policies.dbcogact.cost import stage_costs
from trimvla.policies.sizes.cost import Shape, shape_of
from trimvla.policies.sizes.memory import (
    WORKSPACE_BYTES,
    MemoryPlan,
    block_elements,
    memory_of,
    vit_elements,
)
from trimvla.runtime.bundle.plan import Plan


def memory(
    cfg: DbCogActConfig,
    plan: Plan,
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """See `Family.memory`."""
    shape = shape_of(cfg, plan)  # pyright: ignore[reportArgumentType]
    costs = stage_costs(cfg, shape, max(cfg.prompt.buckets))
    table = cfg.language.vocab * cfg.language.width
    return memory_of(costs, table, activation_elements(cfg, shape), precision, backend, workspace)


def activation_elements(cfg: DbCogActConfig, shape: Shape) -> dict[str, int]:
    """Numbers that live at once at each stage's widest point, if nothing is fused: an upper
    estimate.

    Images of all cameras are one batch; the text before the image is keys and values alone.
    """
    language = cfg.language
    head = cfg.head
    vit = cfg.vision
    rows = cfg.patches + max(cfg.prompt.buckets)
    keys = len(cfg.prompt.before_ids) + rows
    steps = (1 + shape.guided) * (head.horizon + 1)
    given = vit.patches * (vit.width + max(cfg.projector.hidden, default=0))
    return {
        "vision": len(cfg.cameras) * (vit_elements(vit) + given),
        "language": block_elements(rows, language.width, max(shape.mlp), language.heads, keys),
        "action": block_elements(steps, head.width, int(head.mlp_ratio * head.width), head.heads),
    }
