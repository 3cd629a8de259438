"""A plan for a policy whose expert reads its decoder layer by layer: which pairs stay is measured,
how many and all else is as requested.

Knows the table of families; the measuring is the family's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from trimvla.launch.exporting.demonstration_frames import Frames, Reader, draw_frames
from trimvla.launch.exporting.policy_source import build_policy, is_official, open_source
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import family_of, visual_tokens
from trimvla.policies.sizes.counts import plan_by_counts
from trimvla.policies.trimming.importance import most_important
from trimvla.policies.trimming.outputs import Outputs
from trimvla.policies.trimming.own import find_criterion, use_selector
from trimvla.policies.trimming.planner import Request
from trimvla.runtime.bundle.manifest import PromptSpec
from trimvla.runtime.bundle.plan import Plan, Provenance
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.bundle.vision_plan import VisionPlan
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.prompts import Prompter

SHARDS = "*.npz"


@dataclass(frozen=True)
class Measured:
    """What was opened, and the plan that came of it."""

    cfg: object
    plan: Plan


def paired_plan(
    source: Path, shards: list[Path], frames: int, request: Request, created_utc: str
) -> Measured:
    """Open, measure, decide.

    Raises:
        ConfigError: frames do not fit the policy, or what is requested is more than there is or
            not to be had in this family.
    """
    if request.mlp_keep != 1.0:
        raise ConfigError(
            "expected --mlp-keep 1 for a policy whose expert reads its decoder layer by layer, got"
            f" {request.mlp_keep}: write 'channels' into the plan yourself (docs/concepts/plan.md)"
        )
    if not is_official(source):
        raise ConfigError(f"{source}: expected the checkpoint's folder, got a run's or a bundle")
    opened = open_source(source)
    cfg = opened.cfg
    family = family_of(cfg)
    assert family.measure_pairs is not None  # the caller has checked
    there = family.trimmable(cfg)
    vision = request.patches and VisionPlan(patches=request.patches)
    use_selector(request.tokens, visual_tokens(cfg, Plan(vision=vision)), "--selector")
    counted = plan_by_counts(
        there,
        layers=request.layers,
        tokens=request.tokens,
        cache_interval=request.cache_interval,
        steps=request.steps,
    )
    counted = msgspec.structs.replace(
        counted, policy=cfg.fingerprint, vision=vision, guidance=request.guidance
    )
    family.check_plan(counted, cfg)
    criterion = find_criterion(request.criterion, "--criterion")
    data = frames_of(opened, shards, frames, request.seed)
    policy = build_policy(opened)
    samples = [{**sample, "last": sample["length"] - 1} for sample in data.samples]
    statistics = replace(
        family.measure_pairs(policy, data.samples),
        outputs=Outputs(family, policy, samples, request.seed),
    )
    scores = criterion(statistics, request.seed)
    kept = there.layers if request.layers is None else request.layers
    layers = most_important(scores, kept)
    plan = msgspec.structs.replace(
        counted,
        layers=None if kept == there.layers else layers,
        provenance=Provenance(
            criterion=request.criterion,
            scores=tuple(scores),
            calibration=data.digest(),
            frames=statistics.samples,
            seed=request.seed,
            created_utc=created_utc,
        ),
    )
    family.check_plan(plan, cfg)
    return Measured(cfg, plan)


def frames_of(opened: Checkpoint, shards: list[Path], count: int, seed: int) -> Frames:
    """Frames of shards as the policy's tensors. ConfigError without a tokenizer."""
    described = family_of(opened.cfg).describe(opened, Plan())
    prompt = described.prompt
    prompter = None if prompt is None else _prompter(opened, prompt)
    return draw_frames(Reader(opened, described, prompter), shards, count, seed)


def _prompter(opened: Checkpoint, prompt: PromptSpec) -> Prompter:
    if opened.tokenizer is None:
        hint = family_of(opened.cfg).tokenizer_hint
        raise ConfigError(f"{opened.directory}: expected tokenizer.json, got none: {hint}")
    return Prompter(load_tokenizer(opened.tokenizer, error=ConfigError), prompt)


def find_shards(named: Path | None, source: Path) -> list[Path]:
    """The shard or folder of shards that is named, else those of the source's demonstrations."""
    if named is None:
        return sorted((source / "demos").glob(SHARDS))
    if named.is_dir():
        return sorted(named.glob(SHARDS))
    if not named.is_file():
        raise ConfigError(f"expected a shard of demonstrations for --calibration, got {named}")
    return [named]
