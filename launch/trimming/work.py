"""How `trimvla trim` decides: the policy is opened, its frames are found, the planner runs.

Knows where policies and frames come from; what stays of a policy is the planner's to decide, or
the family's, where an expert reads its decoder layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimvla.launch.console import progress_bar
from trimvla.launch.exporting.paired_plan import find_shards, paired_plan
from trimvla.launch.exporting.policy_source import (
    TOKENIZER,
    check_planner,
    family_of_source,
    find_source,
    load_policy,
)
from trimvla.launch.figures.plan_picture import draw_plan
from trimvla.launch.frames.calibration import find_calibration
from trimvla.launch.frames.played import PlayedEnv, calibration_from_env
from trimvla.launch.trimming.options import Args, patch_plan, token_plan
from trimvla.launch.trimming.shown import draw, scores_of
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.families import family_of
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.cost import report, shape_by_counts, shape_of
from trimvla.policies.sizes.cost_report import Ratios, ratios
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.planner import Request, check_request, make_plan, time_stamp
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError

MEASURING = "measuring the policy on calibration frames"


@dataclass(frozen=True)
class Made:
    """A plan, its picture, and what is left of the dense policy's costs."""

    plan: Plan
    picture: Path
    ratio_to_dense: Ratios


def decide(args: Args) -> Made:
    """Measure and decide, and draw the picture beside `--out`.

    Raises:
        ConfigError: names what cannot be trimmed, measured or kept.
    """
    source = find_source(args.source)
    check_planner(source, pairs=True)
    if family_of_source(source).calibrates:
        return _calibrated(args, source)
    return _paired(args, source)


def _calibrated(args: Args, source: Path) -> Made:
    """For a policy whose layers are measured by what they change."""
    policy = load_policy(source, args.preset, args.checkpoint)
    assert isinstance(policy, CogAct)  # what families that calibrate build
    cfg = policy.cfg
    with progress_bar() as progress:
        progress.add_task(MEASURING, total=None)
        asked = request(args)
        check_request(asked, cfg)
        data = calibrate(args, source, cfg)
        plan = make_plan(policy, data, asked, time_stamp())
        args.out.parent.mkdir(parents=True, exist_ok=True)
        picture = draw(policy, plan, data, source / TOKENIZER, args.out.with_suffix(".png"))
    left = ratios(report(cfg, shape_of(cfg, plan)), report(cfg, shape_by_counts(cfg)))
    return Made(plan, picture, left)


def _paired(args: Args, source: Path) -> Made:
    """For a policy whose expert reads its decoder layer by layer."""
    for name in ("env", "preset", "checkpoint"):
        if getattr(args, name) is not None:
            raise ConfigError(f"expected no --{name} for such a policy, got {getattr(args, name)}")
    shards = find_shards(args.calibration, source)
    with progress_bar() as progress:
        progress.add_task(MEASURING, total=None)
        made = paired_plan(source, shards, args.frames, request(args), time_stamp())
    plan = made.plan
    family = family_of(made.cfg)
    scores = scores_of(plan)
    kept = tuple(range(len(scores))) if plan.layers is None else plan.layers
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_plan(scores, kept, [], args.out.with_suffix(".png"))
    left = ratios(family.cost(made.cfg, plan), family.cost(made.cfg, Plan()))
    return Made(plan, picture, left)


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
        image_size=args.image_size,
        encoder_blocks=args.encoder_blocks,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
    )
