"""Whether a plan fits a pi0 or pi0.5 policy, part by part. Knows numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.kept import (
    euler_steps,
    kept_blocks,
    kept_experts,
    kept_pairs,
    kept_prefix,
    patches_kept,
)
from trimvla.policies.trimming.tokens import check_cameras
from trimvla.runtime.bundle.plan import Plan, TokenPlan, check_parts, unmask
from trimvla.runtime.errors import ConfigError

KNOWN = frozenset(
    {
        "layers",
        "channels",
        "expert_layers",
        "expert_channels",
        "recompute",
        "steps",
        "tokens",
        *(f"tokens.{name}" for name in ("selector", "keep", "after", "key", "alpha", "rows")),
        *(f"tokens.{name}" for name in ("source", "embedding", "seed", "quotas", "floor")),
        "vision",
        "vision.blocks",
        "vision.patches",
        *(f"vision.patches.{name}" for name in ("keep", "after", "selector", "seed")),
    }
)


def check(plan: Plan, cfg: Pi0Config) -> None:
    """Whether the plan fits the config.

    Raises:
        ConfigError: it does not; the message names the field.
    """
    if plan.policy not in (None, cfg.fingerprint):
        raise ConfigError(
            f"expected a plan for policy '{cfg.name}' ({cfg.fingerprint}), got one for"
            f" {plan.policy}"
        )
    check_parts(plan, KNOWN, cfg.name)
    pairs = kept_pairs(plan, cfg)
    if pairs[-1] >= cfg.language.layers:
        raise ConfigError(f"expected 'layers' below {cfg.language.layers}, got {pairs[-1]}")
    experts = kept_experts(plan, cfg)
    lost = sorted(set(experts) - set(pairs))
    if lost:
        raise ConfigError(
            f"expected 'expert_layers' among the kept layers {list(pairs)}, got {lost}"
        )
    _check_masks("channels", plan.channels, len(pairs), cfg.language.mlp_hidden)
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


def _check_vision(plan: Plan, cfg: Pi0Config) -> None:
    vision = plan.vision
    depth = cfg.vision.depth
    if vision is None:
        return
    if vision.blocks is not None:
        if len(vision.blocks) != 1:
            raise ConfigError(f"expected 'vision.blocks' for 1 encoder, got {len(vision.blocks)}")
        if vision.blocks[0][-1] >= depth:
            raise ConfigError(f"expected 'vision.blocks' below {depth}, got {vision.blocks[0][-1]}")
    if vision.patches is not None:
        if vision.patches.keep > cfg.patches:
            raise ConfigError(
                f"expected at most {cfg.patches} for 'keep' of 'vision.patches', got"
                f" {vision.patches.keep}"
            )
        if vision.patches.after > kept_blocks(plan, cfg) - 1:
            raise ConfigError(
                f"expected 'after' of 'vision.patches' below the {kept_blocks(plan, cfg)} kept"
                f" blocks, got {vision.patches.after}"
            )


def _check_tokens(tokens: TokenPlan, plan: Plan, cfg: Pi0Config) -> None:
    check_cameras(tokens, len(cfg.cameras), patches_kept(plan, cfg))
    layers = len(kept_prefix(plan, cfg))
    if tokens.after >= layers:
        raise ConfigError(
            f"expected fewer layers before tokens are dropped than the {layers} kept, got"
            f" {tokens.after}"
        )
    if tokens.scored is None:
        return
    if tokens.scored == "state":
        raise ConfigError(
            "expected rows of the text for 'rows' of 'tokens': the decoder sees no state"
        )
    if tokens.source == "expert":
        raise ConfigError("expected 'previous' or 'next' for 'source' of 'tokens', got 'expert'")
    if tokens.source == "next" and tokens.after == layers - 1:
        raise ConfigError(
            "expected 'previous' for 'source' of 'tokens': the next layer is the deepest, which has"
            " no queries"
        )
