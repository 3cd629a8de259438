"""`trimvla trim`: calibration frames -> a plan. Finds the parts; `policies.planner` decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.console import progress_bar
from trimvla.launch.evaluation.env_args import EnvArgs
from trimvla.launch.exporting.calibration import find_calibration
from trimvla.launch.exporting.paired_plan import find_shards, paired_plan
from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.exporting.played_frames import PlayedEnv, calibration_from_env
from trimvla.launch.exporting.policy_source import (
    TOKENIZER,
    check_planner,
    family_of_source,
    find_source,
    load_policy,
)
from trimvla.launch.exporting.results import TrimResult
from trimvla.launch.figures.kept_tokens import kept_over_image
from trimvla.launch.figures.plan_picture import KeptFrame, draw_plan
from trimvla.launch.outputs import Output
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.tokenizer import instruction_in
from trimvla.policies.families import family_of
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.cost import report, shape_by_counts, shape_of
from trimvla.policies.sizes.cost_report import ratios
from trimvla.policies.trimming.calibrate import Calibration, kept_tokens
from trimvla.policies.trimming.planner import Request, check_request, make_plan, time_stamp
from trimvla.policies.trimming.trimmed import kept_layers, trim
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, TokenPlan, TokenSelector, save_plan
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.bundle.vision_plan import PatchPlan
from trimvla.runtime.errors import ConfigError

Rows = Literal["text", "instruction", "last", "none"]
BAR = 40  # characters of the longest bar
PICTURES = 6  # frames in the image of a plan that drops tokens


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
    """Calibration data, or a recording (*.mcap) whose frames were seen while a task was held
    (default: frames of the run folder's demonstrations; for a tabletop bundle, of fresh ones). For
    pi0, pi0.5 and SmolVLA: a shard of demonstrations (*.npz) or a folder of them.
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

    steps: int | None = None
    """DDIM steps: the control that a cache must beat."""

    guidance: float | None = None
    """Classifier-free guidance scale; 1 or less: none, and half the head's work."""

    seed: int = 0
    """Of the drawn frames and of the random controls."""

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return Output("--out", self.out), Output(
            "the image beside --out", self.out.with_suffix(".png")
        )


def run(args: Args) -> TrimResult:
    """Measure, decide, write the plan and its image; the scores as bars."""
    source = find_source(args.source)
    check_planner(source, pairs=True)
    if not family_of_source(source).calibrates:
        return run_paired(args, source)
    policy = load_policy(source, args.preset, args.checkpoint)
    assert isinstance(policy, CogAct)  # what families that calibrate build
    tokenizer = source / TOKENIZER
    with progress_bar() as progress:
        progress.add_task("measuring the policy on calibration frames", total=None)
        asked = request(args)
        check_request(asked, policy.cfg)
        data = calibrate(args, source, policy.cfg)
        plan = make_plan(policy, data, asked, time_stamp())
        args.out.parent.mkdir(parents=True, exist_ok=True)
        picture = draw(policy, plan, data, tokenizer, args.out.with_suffix(".png"))
    save_plan(plan, args.out)
    args.console().print(as_table(plan))
    cfg = policy.cfg
    return TrimResult(
        ok=True,
        plan=args.out,
        picture=picture,
        kept_layers=plan.layers,
        scores=list(plan.provenance.scores) if plan.provenance else [],
        ratio_to_dense=ratios(report(cfg, shape_of(cfg, plan)), report(cfg, shape_by_counts(cfg))),
    )


def run_paired(args: Args, source: Path) -> TrimResult:
    """The same for a policy whose expert reads its decoder layer by layer."""
    for name in ("env", "preset", "checkpoint"):
        if getattr(args, name) is not None:
            raise ConfigError(f"expected no --{name} for such a policy, got {getattr(args, name)}")
    shards = find_shards(args.calibration, source)
    with progress_bar() as progress:
        progress.add_task("measuring the policy on calibration frames", total=None)
        made = paired_plan(source, shards, args.frames, request(args), time_stamp())
    plan = made.plan
    family = family_of(made.cfg)
    scores = plan.provenance.scores if plan.provenance else ()
    kept = tuple(range(len(scores))) if plan.layers is None else plan.layers
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_plan(scores, kept, [], args.out.with_suffix(".png"))
    save_plan(plan, args.out)
    args.console().print(as_table(plan))
    return TrimResult(
        ok=True,
        plan=args.out,
        picture=picture,
        kept_layers=plan.layers,
        scores=list(scores),
        ratio_to_dense=ratios(family.cost(made.cfg, plan), family.cost(made.cfg, Plan())),
    )


def calibrate(args: Args, source: Path, cfg: PolicyConfig) -> Calibration:
    """Frames of the environment that is named, or what `find_calibration` finds."""
    if args.env is None:
        if given := args.env_options().given():
            raise ConfigError(f"expected --env for {', '.join(given)}")
        return find_calibration(
            args.calibration, source, cfg, source / TOKENIZER, frames=args.frames, seed=args.seed
        )
    if args.calibration is not None:
        raise ConfigError("expected --calibration or --env, got both")
    is_bundle = (source / bundles.MANIFEST).exists()
    played = PlayedEnv(args.env, args.env_options([str(source)] if is_bundle else []), source)
    tokenizer = load_tokenizer(source / TOKENIZER, error=ConfigError)
    return calibration_from_env(played, cfg, tokenizer, args.frames, args.seed)


def request(args: Args) -> Request:
    """The options, as the planner takes them."""
    return Request(
        **args.kept,
        criterion=args.criterion,
        tokens=token_plan(args),
        patches=patch_plan(args),
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
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


def draw(policy: CogAct, plan: Plan, data: Calibration, tokenizer: Path, path: Path) -> Path:
    """Scores of the layers and, where tokens are dropped, what is kept of some frames; the path of
    the PNG.
    """
    frames = []
    if plan.tokens is not None:
        grid = policy.cfg.vision[0].image_size // policy.cfg.vision[0].patch_size
        for image, kept, ids in kept_tokens(trim(policy, plan), data, PICTURES):
            instruction = instruction_of(policy.cfg, tokenizer, ids)
            frames.append(KeptFrame(image, kept_over_image(image, kept, grid), instruction))
    scores = plan.provenance.scores if plan.provenance else ()
    return draw_plan(scores, kept_layers(plan, policy.cfg), frames, path)


def instruction_of(cfg: PolicyConfig, tokenizer: Path, ids: np.ndarray) -> str:
    """The instruction in a prompt's ids; empty where no tokenizer lies beside the policy."""
    if not tokenizer.is_file():
        return ""
    text = load_tokenizer(tokenizer, error=ConfigError).decode(ids.tolist())
    return instruction_in(text, cfg.prompt.template)


def as_table(plan: Plan) -> Table:
    """One bar a layer: what it is worth, and whether it stays."""
    scores = plan.provenance.scores if plan.provenance else ()
    kept = set(range(len(scores)) if plan.layers is None else plan.layers)
    table = Table("layer", "score", "", "kept", title="worth of each language layer")
    highest = max(max(scores, default=0.0), 1e-12)
    for index, score in enumerate(scores):
        bar = "█" * max(0, round(BAR * score / highest))
        table.add_row(str(index), f"{score:.4f}", bar, "yes" if index in kept else "-")
    return table
