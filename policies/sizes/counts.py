"""How much of a policy there is to keep, and the plan that keeps so much of it.

Counts do not show what is worth keeping: layers are spread evenly, the first MLP channels
stay. Knows sizes and no weights; needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.cost import kept_count
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Trimmable:
    """What counts refer to, in every family."""

    layers: int
    """Of the language model."""
    mlp_hidden: int
    """MLP channels of a language layer."""
    image_tokens: int
    """Visual tokens of one image."""
    cameras: int = 1
    steps: int
    """Of the sampler: DDIM or Euler."""
    encoder_blocks: int | None = None
    """Of the image encoder, where a plan may drop some."""

    @property
    def visual_tokens(self) -> int:
        """Visual tokens in the sequence, of all cameras."""
        return self.cameras * self.image_tokens


def trimmable(cfg: PolicyConfig) -> Trimmable:
    """What counts refer to in a policy of `PolicyConfig`'s sizes; see `Family.trimmable`."""
    return Trimmable(
        layers=cfg.language.layers,
        mlp_hidden=cfg.language.mlp_hidden,
        image_tokens=cfg.patches,
        steps=cfg.diffusion.inference_steps,
    )


def plan_by_counts(
    there: Trimmable,
    *,
    layers: int | None = None,
    mlp_keep: float = 1.0,
    tokens: TokenPlan | None = None,
    cache_interval: int = 1,
    steps: int | None = None,
) -> Plan:
    """The plan that keeps so many language layers, such a share of their MLP channels, and so on.

    Raises:
        ConfigError: more is to be kept than there is, or nothing.
    """
    kept = there.layers if layers is None else layers
    if not 1 <= kept <= there.layers:
        raise ConfigError(f"expected from 1 to {there.layers} language layers to keep, got {kept}")
    if tokens is not None:
        _check_tokens(tokens, kept, there.visual_tokens)
    ran = there.steps if steps is None else steps
    if not 1 <= cache_interval <= ran:
        words = f"a cache interval from 1 to {ran} (the sampler's steps)"
        raise ConfigError(f"expected {words}, got {cache_interval}")
    channels = mask(range(kept_count(there.mlp_hidden, mlp_keep)))
    return Plan(
        layers=None if kept == there.layers else spread(there.layers, kept),
        channels=None if mlp_keep == 1.0 else (channels,) * kept,
        tokens=tokens,
        recompute=None if cache_interval == 1 else tuple(range(0, ran, cache_interval)),
        steps=None if steps == there.steps else steps,
    )


def vision_by_counts(
    there: Trimmable,
    *,
    image_size: int | None = None,
    blocks: int | None = None,
    patches: PatchPlan | None = None,
) -> VisionPlan | None:
    """The plan that keeps images of this side, so many of the encoder's blocks at even distances,
    and these patches; None where all is kept.

    Whether the size and the patches fit is the family's to check.

    Raises:
        ConfigError: more blocks are to be kept than there are, or none, or a plan of this policy
            can drop none.
    """
    if blocks is not None and there.encoder_blocks is None:
        words = "expected no count of encoder blocks: a plan of this policy keeps all"
        raise ConfigError(f"{words}, got {blocks}")
    depth = there.encoder_blocks or 0
    if blocks is not None and not 1 <= blocks <= depth:
        raise ConfigError(f"expected from 1 to {depth} encoder blocks to keep, got {blocks}")
    kept = None if blocks in (None, depth) else (spread(depth, blocks),)
    found = VisionPlan(image_size=image_size, blocks=kept, patches=patches)
    return None if found == VisionPlan() else found


def _check_tokens(tokens: TokenPlan, layers: int, visual_tokens: int) -> None:
    if tokens.keep > visual_tokens:
        words = f"at most {visual_tokens} visual tokens to keep"
        raise ConfigError(f"expected {words}, got {tokens.keep}")
    if tokens.after >= layers:
        words = f"fewer layers before tokens are dropped than the {layers} kept"
        raise ConfigError(f"expected {words}, got {tokens.after}")


def spread(count: int, kept: int) -> tuple[int, ...]:
    """`kept` of `count` indices at even distances, the first and the last among them (of one: the
    first).
    """
    return tuple(round(i * (count - 1) / max(1, kept - 1)) for i in range(kept))
