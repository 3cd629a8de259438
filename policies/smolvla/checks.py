"""Whether a plan fits a SmolVLA policy; every error names the field, what was expected and what
came.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.kept import (
    blocks,
    euler_steps,
    image_side,
    kept_experts,
    kept_pairs,
    kept_prefix,
    tokens_per_image,
    tokens_seen,
)
from trimvla.runtime.bundle.plan import Plan, TokenPlan, check_parts, unmask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError

PARTS = frozenset(
    {
        *("layers", "channels", "expert_layers", "expert_channels", "recompute", "steps"),
        "tokens",
        *(f"tokens.{field}" for field in TokenPlan.__struct_fields__),
        "vision",
        *(f"vision.{field}" for field in VisionPlan.__struct_fields__),
        *(f"vision.patches.{field}" for field in PatchPlan.__struct_fields__),
    }
)


def check(plan: Plan, cfg: SmolVlaConfig) -> None:
    """Whether the plan fits the config.

    Raises:
        ConfigError: it does not; the message names the field.
    """
    if plan.policy not in (None, cfg.fingerprint):
        raise ConfigError(
            f"expected a plan for policy '{cfg.name}' ({cfg.fingerprint}), got one for "
            f"{plan.policy}"
        )
    check_parts(plan, PARTS, cfg.name)
    pairs = kept_pairs(plan, cfg)
    if pairs[-1] >= cfg.text.layers:
        raise ConfigError(f"expected 'layers' below {cfg.text.layers}, got {pairs[-1]}")
    experts = kept_experts(plan, cfg)
    if experts[-1] >= cfg.text.layers:
        raise ConfigError(f"expected 'expert_layers' below {cfg.text.layers}, got {experts[-1]}")
    _check_masks("channels", plan.channels, len(pairs), cfg.text.mlp_hidden)
    _check_masks("expert_channels", plan.expert_channels, len(experts), cfg.expert.mlp_hidden)
    _check_vision(plan, cfg)
    if plan.tokens is not None:
        _check_tokens(plan.tokens, plan, cfg)
    steps = euler_steps(plan, cfg)
    if plan.recompute is not None and plan.recompute[-1] >= steps:
        raise ConfigError(
            f"expected 'recompute' below {steps} (the Euler steps), got {plan.recompute[-1]}"
        )


def _check_masks(name: str, masks: Sequence[str] | None, layers: int, hidden: int) -> None:
    if masks is None:
        return
    if len(masks) != layers:
        raise ConfigError(f"expected '{name}' for {layers} kept layers, got {len(masks)}")
    highest = max(unmask(text, name)[-1] for text in masks)
    if highest >= hidden:
        raise ConfigError(f"expected '{name}' below {hidden}, got {highest}")


def _check_vision(plan: Plan, cfg: SmolVlaConfig) -> None:
    vision = plan.vision
    if vision is None:
        return
    if vision.image_size is not None:
        cfg.check_image_size(vision.image_size, "image_size' of 'vision")
        if vision.image_size > cfg.image_size:
            raise ConfigError(
                f"expected at most {cfg.image_size} pixels, as the policy has them, for "
                f"'image_size' of 'vision', "
                f"got {vision.image_size}"
            )
    depth = cfg.vision.depth
    if vision.blocks is not None:
        if len(vision.blocks) != 1:
            raise ConfigError(
                f"expected 'blocks' of 'vision' for 1 encoder, got {len(vision.blocks)}"
            )
        if vision.blocks[0][-1] >= depth:
            raise ConfigError(
                f"expected 'blocks' of 'vision' below {depth}, got {vision.blocks[0][-1]}"
            )
    if vision.patches is not None:
        _check_patches(vision.patches, plan, cfg)


def _check_patches(patches: PatchPlan, plan: Plan, cfg: SmolVlaConfig) -> None:
    count = tokens_per_image(plan, cfg)
    if patches.keep > count:
        side = image_side(plan, cfg)
        raise ConfigError(
            f"expected at most {count}, the visual tokens of an image of {side} pixels, for "
            f"'keep' of "
            f"'vision.patches', got {patches.keep}"
        )
    running = len(blocks(plan, cfg))
    if patches.after >= running:
        raise ConfigError(
            f"expected 'after' of 'vision.patches' below the {running} kept blocks, got "
            f"{patches.after}"
        )


def _check_tokens(tokens: TokenPlan, plan: Plan, cfg: SmolVlaConfig) -> None:
    from trimvla.policies.trimming.tokens import check_cameras

    check_cameras(tokens, len(cfg.cameras), len(tokens_seen(plan, cfg)))
    layers = kept_prefix(plan, cfg)
    if tokens.after >= len(layers):
        raise ConfigError(
            f"expected fewer layers before tokens are dropped than the {len(layers)} that run, "
            f"got {tokens.after}"
        )
    if tokens.scored is None:
        return
    if tokens.source == "next" and tokens.after == len(layers) - 1:
        raise ConfigError(
            "expected 'previous' or 'expert' for 'source' of 'tokens': the layer behind them is "
            "the deepest and asks "
            "nothing, got 'next'"
        )
    early = [index for index in kept_experts(plan, cfg) if index in layers[: tokens.after]]
    if tokens.source == "expert" and all(cfg.expert.attends_to_actions(index) for index in early):
        raise ConfigError(
            f"expected an expert layer that looks at the prefix alone among the first "
            f"{tokens.after} kept layers for "
            f"'source' 'expert' of 'tokens', got the expert layers {early}"
        )
