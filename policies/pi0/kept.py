"""What a plan keeps of a pi0 policy, in numbers: layers, readers, masks, patches.

Indices are those of the dense policy throughout. Knows no weights and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.streaming import Slice
from trimvla.runtime.bundle.plan import Plan, unmask

SLICE_LAYERS = 2  # of decoder, expert and encoder, in a slice of the policy
SLICE_WORDS = 2048  # rows of its table


def kept_pairs(plan: Plan, cfg: Pi0Config) -> tuple[int, ...]:
    """Decoder layers that the plan keeps."""
    return tuple(range(cfg.language.layers)) if plan.layers is None else plan.layers


def kept_experts(plan: Plan, cfg: Pi0Config) -> tuple[int, ...]:
    """Expert layers that run, by the decoder layer that each reads."""
    return kept_pairs(plan, cfg) if plan.expert_layers is None else plan.expert_layers


def kept_prefix(plan: Plan, cfg: Pi0Config) -> tuple[int, ...]:
    """Decoder layers that run: up to the deepest one with a reader."""
    deepest = kept_experts(plan, cfg)[-1]
    return tuple(index for index in kept_pairs(plan, cfg) if index <= deepest)


def prefix_masks(plan: Plan, cfg: Pi0Config) -> dict[int, tuple[int, ...] | None]:
    """Kept MLP channels of every kept decoder layer; None: all."""
    return _masks(kept_pairs(plan, cfg), plan.channels, "channels")


def expert_masks(plan: Plan, cfg: Pi0Config) -> dict[int, tuple[int, ...] | None]:
    """Kept MLP channels of every kept expert layer; None: all."""
    return _masks(kept_experts(plan, cfg), plan.expert_channels, "expert_channels")


def _masks(
    layers: Sequence[int], texts: Sequence[str] | None, name: str
) -> dict[int, tuple[int, ...] | None]:
    if texts is None:
        return dict.fromkeys(layers)
    return {index: unmask(text, name) for index, text in zip(layers, texts, strict=True)}


def euler_steps(plan: Plan, cfg: Pi0Config) -> int:
    """Euler steps."""
    return cfg.flow.steps if plan.steps is None else plan.steps


def kept_blocks(plan: Plan, cfg: Pi0Config) -> int:
    """Blocks of the encoder that run."""
    blocks = None if plan.vision is None else plan.vision.blocks
    return cfg.vision.depth if blocks is None else len(blocks[0])


def patches_kept(plan: Plan, cfg: Pi0Config) -> int:
    """Visual tokens of one image that the encoder gives."""
    patches = None if plan.vision is None else plan.vision.patches
    return cfg.patches if patches is None else patches.keep


def visual_tokens(plan: Plan, cfg: Pi0Config) -> int:
    """Visual tokens of all cameras that the decoder begins with."""
    return len(cfg.cameras) * patches_kept(plan, cfg)


def split(plan: Plan, cfg: Pi0Config) -> tuple[int, int]:
    """Layers that are read before tokens are dropped, and behind."""
    readers = set(kept_experts(plan, cfg))
    after = None if plan.tokens is None else plan.tokens.after
    early = sum(index in readers for index in kept_prefix(plan, cfg)[:after])
    return early, len(readers) - early


def slice_of(cfg: Pi0Config, plan: Plan) -> Slice:
    """See `Streaming.slice_of`: the first pairs that are kept, every token."""
    replace = msgspec.structs.replace
    kept = kept_pairs(plan, cfg)[:SLICE_LAYERS]
    depth = min(SLICE_LAYERS, cfg.vision.depth)
    small = replace(
        cfg,
        vision=replace(cfg.vision, depth=depth, feature_block=depth - 1),
        language=replace(
            cfg.language, layers=kept[-1] + 1, vocab=min(SLICE_WORDS, cfg.language.vocab)
        ),
    )
    cut = Plan(
        layers=None if plan.layers is None else kept, recompute=plan.recompute, steps=plan.steps
    )
    deepest = f"language.layers.{kept[-1]}."
    is_whole = small.language.layers == cfg.language.layers
    return Slice(
        small,
        cut,
        {} if is_whole else {"language.tail.": deepest},
        f"the first {len(kept)} kept layers of decoder and expert and {depth} of the encoder, at "
        f"their true widths, with {small.language.vocab} words and every visual token",
    )
