"""What a plan keeps of a SmolVLA policy, in numbers: layers, readers, masks, patches, positions.

Layers are named by their index in the dense policy throughout: it also decides of which kind an
expert layer is. Knows no weights and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.trimming.places import seen_places
from trimvla.runtime.bundle.plan import Plan, unmask


def kept_pairs(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """Decoder layers that the plan keeps."""
    return tuple(range(cfg.text.layers)) if plan.layers is None else plan.layers


def kept_experts(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """Expert layers that run, by the decoder layer that each reads."""
    return kept_pairs(plan, cfg) if plan.expert_layers is None else plan.expert_layers


def kept_prefix(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """Decoder layers that run: up to the deepest one with a reader."""
    deepest = kept_experts(plan, cfg)[-1]
    return tuple(index for index in kept_pairs(plan, cfg) if index <= deepest)


def reads(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """For each kept expert layer: the place of its decoder layer among those that run."""
    prefix = kept_prefix(plan, cfg)
    return tuple(prefix.index(index) for index in kept_experts(plan, cfg))


def prefix_channels(plan: Plan, cfg: SmolVlaConfig) -> dict[int, tuple[int, ...] | None]:
    """Kept MLP channels of every kept decoder layer; None: all."""
    return _channels(kept_pairs(plan, cfg), plan.channels, "channels")


def expert_channels(plan: Plan, cfg: SmolVlaConfig) -> dict[int, tuple[int, ...] | None]:
    """Kept MLP channels of every kept expert layer; None: all."""
    return _channels(kept_experts(plan, cfg), plan.expert_channels, "expert_channels")


def _channels(
    layers: Sequence[int], masks: Sequence[str] | None, name: str
) -> dict[int, tuple[int, ...] | None]:
    if masks is None:
        return dict.fromkeys(layers)
    return {index: unmask(text, name) for index, text in zip(layers, masks, strict=True)}


def euler_steps(plan: Plan, cfg: SmolVlaConfig) -> int:
    """Euler steps."""
    return cfg.flow.steps if plan.steps is None else plan.steps


def full_steps(plan: Plan, cfg: SmolVlaConfig) -> int:
    """Euler steps that run the expert's layers."""
    return euler_steps(plan, cfg) if plan.recompute is None else len(plan.recompute)


# --- vision ---


def image_side(plan: Plan, cfg: SmolVlaConfig) -> int:
    """Pixels a side."""
    side = None if plan.vision is None else plan.vision.image_size
    return cfg.image_size if side is None else side


def blocks(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """Blocks of the encoder that run."""
    kept = None if plan.vision is None else plan.vision.blocks
    return tuple(range(cfg.vision.depth)) if kept is None else kept[0]


def tokens_per_image(plan: Plan, cfg: SmolVlaConfig) -> int:
    """Visual tokens of one image of the plan's size, before any is dropped."""
    return cfg.tokens_at(image_side(plan, cfg))


def tokens_seen(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """Raster indices of the visual tokens of one image that the encoder gives."""
    return seen_places(plan, tokens_per_image(plan, cfg))


def places(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, ...]:
    """Positions of the visual rows that the decoder gets, over all cameras."""
    count = tokens_per_image(plan, cfg)
    seen = tokens_seen(plan, cfg)
    return tuple(camera * count + index for camera in range(len(cfg.cameras)) for index in seen)


def visual_rows(plan: Plan, cfg: SmolVlaConfig) -> int:
    """Visual rows in front of the decoder's first layer."""
    return len(places(plan, cfg))


# --- keys and values ---


def split(plan: Plan, cfg: SmolVlaConfig) -> tuple[int, int]:
    """Expert layers that read all visual rows, and that read what is left where tokens are
    dropped.
    """
    places_read = reads(plan, cfg)
    if plan.tokens is None:
        return len(places_read), 0
    early = sum(place < plan.tokens.after for place in places_read)
    return early, len(places_read) - early
