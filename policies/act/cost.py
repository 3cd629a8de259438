"""What an ACT policy costs under a plan: parameters, operations, bytes of weights. From sizes
alone, no torch.

Operations are those of convolutions and matrix products (2 m n k), batch 1, as the exported stages
compute them: the backbone once for every camera, the decoder's first layer without self-attention.
"""

from __future__ import annotations

import msgspec

from trimvla.policies.act.backbone_sizes import STEM, ConvSize, block_sizes
from trimvla.policies.act.config import ActConfig
from trimvla.policies.act.kept import channels
from trimvla.policies.sizes.cost import Cost, linear, report_of
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

NONE = Cost(0, 0)


def cost(
    cfg: ActConfig, plan: Plan, cameras: int | None = None, prompt: int | None = None
) -> CostReport:
    """See `Family.cost`; `acting_parameters` are those of the dense policy that an action depends
    on, batch norms folded.

    Raises:
        ConfigError: more cameras than the config has, or none, or a prompt: it reads no
            instruction.
    """
    if prompt is not None:
        raise ConfigError(f"expected no prompt for '{cfg.name}', which reads none, got {prompt}")
    cfg = with_cameras(cfg, cameras)
    stages = stage_costs(cfg, plan)
    acting = sum(stage_costs(cfg, Plan()).values(), NONE).parameters
    return report_of(stages, acting + dead_parameters(cfg), acting=acting)


def with_cameras(cfg: ActConfig, cameras: int | None) -> ActConfig:
    """The config with its first cameras; ConfigError where it has fewer."""
    if cameras is None:
        return cfg
    if not 1 <= cameras <= len(cfg.cameras):
        raise ConfigError(
            f"expected 1 to {len(cfg.cameras)} cameras for '{cfg.name}', got {cameras}"
        )
    return msgspec.structs.replace(
        cfg, cameras=cfg.cameras[:cameras], mean=cfg.mean[:cameras], std=cfg.std[:cameras]
    )


def stage_costs(cfg: ActConfig, plan: Plan) -> dict[str, Cost]:
    """Cost of each exported stage."""
    return {"vision": vision_cost(cfg), "action": action_cost(cfg, plan)}


def vision_cost(cfg: ActConfig) -> Cost:
    """The backbone and the map into the transformer's width."""
    height = -(-cfg.image_height // 2)
    width = -(-cfg.image_width // 2)
    total = _convolution(STEM, height * width)
    height = -(-height // 2)
    width = -(-width // 2)
    for block in block_sizes(cfg):
        for conv in block.inner:
            height = -(-height // conv.stride)
            width = -(-width // conv.stride)
            total += _convolution(conv, height * width)
        if block.beside is not None:
            total += _convolution(block.beside, height * width)
    total += linear(cfg.features, cfg.width, cfg.tokens)
    return Cost(total.parameters, len(cfg.cameras) * total.flops)


def _convolution(conv: ConvSize, places: int) -> Cost:
    """At so many places of its output."""
    return linear(conv.kernel**2 * conv.inputs, conv.outputs, places)


def action_cost(cfg: ActConfig, plan: Plan) -> Cost:
    """Encoder and decoder."""
    width = cfg.width
    rows = cfg.single_tokens + cfg.visual_tokens
    norms = (2 + 2 * cfg.pre_norm) * width
    free = Cost((1 + cfg.single_tokens + cfg.horizon) * width + norms, 0)
    total = free + linear(width, cfg.action_dim, cfg.horizon)
    for dim in (cfg.state_dim, cfg.environment_dim):
        total += linear(dim, width, 1) if dim else NONE
    for kept in channels(plan, cfg).values():
        hidden = cfg.mlp_hidden if kept is None else len(kept)
        total += _looking(cfg, rows, rows) + _mlp(cfg, rows, hidden) + Cost(4 * width, 0)
    for index in range(cfg.decoder_layers):
        total += _looking(cfg, cfg.horizon, rows) + _mlp(cfg, cfg.horizon, cfg.mlp_hidden)
        total += _looking(cfg, cfg.horizon, cfg.horizon) if index else Cost(width, 0)
        total += Cost((6 if index else 4) * width, 0)
    return total


def _looking(cfg: ActConfig, queries: int, keys: int) -> Cost:
    """Attention of so many rows to so many."""
    width = cfg.width
    maps = linear(width, 2 * width, queries) + linear(width, 2 * width, keys)
    return maps + Cost(0, 4 * queries * keys * width)


def _mlp(cfg: ActConfig, rows: int, hidden: int) -> Cost:
    return linear(cfg.width, hidden, rows) + linear(hidden, cfg.width, rows)


def dead_parameters(cfg: ActConfig) -> int:
    """Parameters that a checkpoint stores and no action depends on: the training's encoder, the
    latent's map, and what the decoder's first layer needs no more.
    """
    width = cfg.width
    attention = 4 * (width**2 + width)
    first = attention + 2 * width - width  # its self-attention and norm, less `start`
    latent = cfg.latent_dim * width
    if not cfg.vae_layers:
        return first + latent
    layer = attention + 2 * width * cfg.mlp_hidden + cfg.mlp_hidden + width + 4 * width
    ends = [width * (dim + 1) for dim in (cfg.state_dim, cfg.action_dim) if dim]
    out = 2 * cfg.latent_dim * (width + 1)
    norm = 2 * width * cfg.pre_norm
    return first + latent + cfg.vae_layers * layer + sum(ends) + out + width + norm
