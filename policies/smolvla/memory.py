"""How much memory a SmolVLA policy's engines need under a plan. From sizes alone, no torch."""

from __future__ import annotations

from trimvla.policies.sizes.memory import (
    WORKSPACE_BYTES,
    MemoryPlan,
    block_elements,
    memory_of,
)
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.cost import stage_costs
from trimvla.policies.smolvla.kept import image_side, kept_experts, visual_rows
from trimvla.runtime.bundle.plan import Plan


def memory(
    cfg: SmolVlaConfig,
    plan: Plan,
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """See `Family.memory`."""
    costs = stage_costs(cfg, plan, cfg.prompt.longest)
    table = cfg.text.vocab * cfg.text.width
    return memory_of(costs, table, activation_elements(cfg, plan), precision, backend, workspace)


def activation_elements(cfg: SmolVlaConfig, plan: Plan) -> dict[str, int]:
    """Numbers that live at once at each stage's widest point, if nothing is fused: an upper
    estimate.

    Images of all cameras are one batch; the language stage holds the keys and values of its layers
    until it ends, and the action stage those that it is given.
    """
    vit = cfg.vision
    text = cfg.text
    expert = cfg.expert
    patches = (image_side(plan, cfg) // vit.patch_size) ** 2
    rows = visual_rows(plan, cfg) + 1 + cfg.prompt.longest
    read = 2 * len(kept_experts(plan, cfg)) * rows * text.kv_width
    one = block_elements(patches, vit.width, vit.mlp_hidden, vit.heads)
    keys = rows + cfg.horizon
    step = block_elements(cfg.horizon, expert.width, expert.mlp_hidden, text.heads, keys)
    return {
        "vision": len(cfg.cameras) * (one + patches * vit.width),
        "language": block_elements(rows, text.width, text.mlp_hidden, text.heads) + read,
        "action": step + read,
    }
