"""What a plan keeps of an ACT policy, in numbers, and whether it fits: encoder layers and their MLP
channels, no more.

Knows no weights and needs no torch.
"""

from __future__ import annotations

from trimvla.policies.act.config import ActConfig
from trimvla.runtime.bundle.plan import Plan, check_parts, unmask
from trimvla.runtime.errors import ConfigError

PARTS = frozenset({"layers", "channels"})


def kept_layers(plan: Plan, cfg: ActConfig) -> tuple[int, ...]:
    """Encoder layers that run."""
    return tuple(range(cfg.encoder_layers)) if plan.layers is None else plan.layers


def channels(plan: Plan, cfg: ActConfig) -> dict[int, tuple[int, ...] | None]:
    """Kept MLP channels of every kept encoder layer; None: all."""
    layers = kept_layers(plan, cfg)
    if plan.channels is None:
        return dict.fromkeys(layers)
    masks = (unmask(text, "channels") for text in plan.channels)
    return dict(zip(layers, masks, strict=True))


def check(plan: Plan, cfg: ActConfig) -> None:
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
    layers = kept_layers(plan, cfg)
    if layers[-1] >= cfg.encoder_layers:
        raise ConfigError(f"expected 'layers' below {cfg.encoder_layers}, got {layers[-1]}")
    if plan.channels is None:
        return
    if len(plan.channels) != len(layers):
        got = len(plan.channels)
        raise ConfigError(f"expected 'channels' for {len(layers)} kept layers, got {got}")
    highest = max(unmask(text, "channels")[-1] for text in plan.channels)
    if highest >= cfg.mlp_hidden:
        raise ConfigError(f"expected 'channels' below {cfg.mlp_hidden}, got {highest}")
