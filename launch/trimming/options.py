"""The options of `trimvla trim`, and the planner's request that they make. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.evaluation.env_args import EnvArgs
from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.outputs import Output
from trimvla.runtime.bundle.plan import TokenPlan, TokenSelector
from trimvla.runtime.bundle.vision_plan import PatchPlan

Rows = Literal["text", "instruction", "last", "none"]


@dataclass(frozen=True, kw_only=True)
class Args(PlanCounts, EnvArgs):
    """Decide what is kept of a policy; what is left out is kept. No training."""

    source: Positional[Path]
    """A run folder of `trimvla train`, a bundle with its checkpoint beside it (by path, or a
    shipped one by name), or a directory in the official checkpoint layout (then --preset is
    needed).
    """

    out: Path
    """Where the plan goes; an image of it goes beside it (`.png`)."""

    preset: str | None = None
    """Sizes of an official checkpoint: cogact-small, cogact-base or cogact-large."""

    checkpoint: str | None = None
    """Name of the .pt file in `checkpoints/` of an official checkpoint; needed where there are
    several.
    """

    calibration: Path | None = None
    """Calibration data, a recording (*.mcap) whose frames were seen while a task was held, or the
    folder of a LeRobot data set (docs/guides/data-sets.md). Default: frames of the run folder's
    demonstrations; for a tabletop bundle, of fresh ones. For pi0, pi0.5 and SmolVLA: a recording,
    a data set, a shard of demonstrations (*.npz) or a folder of them.
    """

    env: str | None = None
    """Instead, frames of this environment, as `eval` knows it: seen while its expert plays, or the
    bundle where it has none (docs/guides/own-environment.md)."""

    frames: int = 64
    """Frames to take from the demonstrations, the recording or the environment."""

    criterion: str = "block-influence"
    """What a layer is worth: block-influence; greedy-chunk or greedy-feature, which take out the
    layer without which actions or the cognition feature move least, again and again (minutes);
    the controls random and reverse-order; or module:attribute of your own, which is imported
    (docs/guides/own-token-selector.md)."""

    after: int = 2
    """Kept language layers that still see every token."""

    selector: TokenSelector = "efficientvla"
    """Which tokens: efficientvla, relevance, the controls fastv, random and uniform, or
    module:attribute of your own, which is imported (docs/guides/own-token-selector.md)."""

    rows: Rows = "text"
    """Whose attention decides what is relevant: text, instruction or last; none for a selector of
    your own that does not look at it."""

    key_tokens: int = 4
    """The most relevant tokens, kept first; diversity is measured against them."""

    alpha: float = 0.5
    """Share of the other tokens that relevance chooses; diversity chooses the rest."""

    patches: int | None = None
    """Visual tokens of an image that go on inside the encoders, as a grid (default: all)."""

    patches_after: int = 2
    """With --patches: encoder blocks that still see every patch."""

    image_size: int | None = None
    """Side of the images in pixels, of a policy whose positions allow a smaller one: SmolVLA
    (default: its own)."""

    encoder_blocks: int | None = None
    """Blocks of the image encoder to keep, evenly spread, of pi0, pi0.5 and SmolVLA (default: all).
    """

    steps: int | None = None
    """DDIM steps: the control that a cache must beat."""

    guidance: float | Literal["distilled"] | None = None
    """Classifier-free guidance scale; 1 or less: none, and half the head's work, untrained.
    `distilled`: half the work too, and export needs a patch whose head was trained for it
    (`trimvla recover --parts head`)."""

    seed: int = 0
    """Of the drawn frames and of the random controls."""

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return Output("--out", self.out), Output(
            "the image beside --out", self.out.with_suffix(".png")
        )


def token_plan(args: Args) -> TokenPlan | None:
    """Which tokens to keep, if not all."""
    if args.tokens is None:
        return None
    return TokenPlan(
        keep=args.tokens,
        after=args.after,
        selector=args.selector,
        rows=args.rows,
        key=args.key_tokens,
        alpha=args.alpha,
        seed=args.seed,
    )


def patch_plan(args: Args) -> PatchPlan | None:
    """Which patches go on inside the encoders, if not all."""
    if args.patches is None:
        return None
    return PatchPlan(keep=args.patches, after=args.patches_after)
