"""What a plan keeps of vision transformers: the image's size, encoder blocks, patches.

The controls that each must beat: a smaller image against fewer patches at the same cost, blocks
kept evenly against those that a criterion chose. Knows its own fields; whether they fit a policy is
the family's to check.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from trimvla.runtime.bundle.plan_ranges import MAX_INDEX, MAX_TOKENS, check_range, check_rising
from trimvla.runtime.errors import ConfigError

MAX_SIDE = 16384  # pixels
MAX_ENCODERS = 16
PatchSelector = Literal["uniform", "random"]


class PatchPlan(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Which patches go on behind the first encoder blocks: the same ones in every image, and in
    every encoder.

    Counted in visual tokens, the patches of one go or stay together. Kept ones keep their order and
    their positions.
    """

    keep: int
    """Visual tokens of an image that are kept."""
    after: int
    """Kept encoder blocks that still see every patch."""
    selector: PatchSelector = "uniform"
    """A grid over the image, or a set drawn once from `seed`."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("keep' of 'vision.patches", self.keep, 1, MAX_TOKENS)
        check_range("after' of 'vision.patches", self.after, 0, MAX_INDEX)
        check_range("seed' of 'vision.patches", self.seed, 0, 2**63 - 1)


class VisionPlan(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What is kept of a policy's vision transformers; a field that is left out keeps everything."""

    image_size: int | None = None
    """Side of the square image in pixels."""
    blocks: tuple[tuple[int, ...], ...] | None = None
    """Kept blocks of each encoder, ascending; one list an encoder."""
    patches: PatchPlan | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_range("image_size' of 'vision", self.image_size, 1, MAX_SIDE)
        if self.blocks is not None and not 1 <= len(self.blocks) <= MAX_ENCODERS:
            got = len(self.blocks)
            raise ConfigError(
                f"expected a list of blocks for each of up to {MAX_ENCODERS} encoders for 'blocks'"
                f" of 'vision', got {got}"
            )
        for index, kept in enumerate(self.blocks or ()):
            check_rising(f"blocks[{index}]' of 'vision", kept)
