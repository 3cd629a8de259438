"""How much memory an ACT policy's engines need under a plan. From sizes alone, no torch."""

from __future__ import annotations

from trimvla.policies.act.backbone_sizes import STEM
from trimvla.policies.act.config import ActConfig
from trimvla.policies.act.cost import stage_costs
from trimvla.policies.sizes.memory import (
    WORKSPACE_BYTES,
    MemoryPlan,
    block_elements,
    memory_of,
)
from trimvla.runtime.bundle.plan import Plan


def memory(
    cfg: ActConfig,
    plan: Plan,
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """See `Family.memory`."""
    costs = stage_costs(cfg, plan)
    return memory_of(costs, 0, activation_elements(cfg), precision, backend, workspace)


def activation_elements(cfg: ActConfig) -> dict[str, int]:
    """Numbers that live at once at each stage's widest point, if nothing is fused: an upper
    estimate.

    The backbone is widest behind its first convolution, at half the image's size; images of all
    cameras are one batch.
    """
    places = -(-cfg.image_height // 2) * -(-cfg.image_width // 2)
    rows = cfg.single_tokens + cfg.visual_tokens
    encoder = block_elements(rows, cfg.width, cfg.mlp_hidden, cfg.heads)
    decoder = block_elements(cfg.horizon, cfg.width, cfg.mlp_hidden, cfg.heads, rows)
    return {
        "vision": 2 * len(cfg.cameras) * places * STEM.outputs,
        "action": max(encoder, decoder + rows * cfg.width),
    }
