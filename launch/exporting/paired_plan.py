"""A plan for a policy whose family measures its layers itself, such as one whose expert reads its
decoder layer by layer: which layers (there: pairs) stay is measured, how many and all else is as
requested.

Knows the table of families; the measuring is the family's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from trimvla.launch.exporting.policy_source import build_policy, is_official, open_source
from trimvla.launch.frames.calibration import RECORDINGS, is_data_set
from trimvla.launch.frames.demonstrations import Frames, Reader, Sample, draw_frames
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import Family, family_of, visual_tokens
from trimvla.policies.sizes.counts import plan_by_counts
from trimvla.policies.trimming.calibrate import Statistics
from trimvla.policies.trimming.importance import most_important
from trimvla.policies.trimming.outputs import Outputs
from trimvla.policies.trimming.own import find_criterion, use_selector
from trimvla.policies.trimming.planner import Request
from trimvla.policies.trimming.width import kept_channels
from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
from trimvla.runtime.bundle.manifest import PromptSpec
from trimvla.runtime.bundle.plan import Plan, Provenance, mask
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.preprocess.prompts import Prompter

SHARDS = "*.npz"
DENSE = Plan()


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
    if not is_official(source):
        raise ConfigError(f"{source}: expected the checkpoint's folder, got a run's or a bundle")
    opened = open_source(source)
    cfg = opened.cfg
    family = family_of(cfg)
    assert family.measure_pairs is not None  # the caller has checked
    check_request(request, family)
    there = family.trimmable(cfg)
    vision = request.vision_of(there)
    family.check_plan(Plan(vision=vision), cfg)
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
    samples = [with_last(sample) for sample in data.samples]
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
        channels=kept_masks(statistics, layers, request.mlp_keep),
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


def check_request(request: Request, family: Family) -> None:
    """ConfigError that names the options by which a family's plans are not made here."""
    given = {
        "--mlp-keep": ("channels", request.mlp_keep != 1.0),
        "--tokens": ("tokens", request.tokens is not None),
        "--patches": ("vision", request.patches is not None),
        "--image-size": ("vision", request.image_size is not None),
        "--encoder-blocks": ("vision", request.encoder_blocks is not None),
        "--cache-interval": ("recompute", request.cache_interval != 1),
        "--steps": ("steps", request.steps is not None),
        "--guidance": ("guidance", request.guidance is not None),
    }
    wrong = [
        option for option, (part, asked) in given.items() if asked and part not in family.planned
    ]
    if wrong == ["--mlp-keep"]:
        raise ConfigError(
            f"expected --mlp-keep 1 for a policy of family '{family.name}', got "
            f"{request.mlp_keep}: write 'channels' into the plan yourself (docs/concepts/plan.md)"
        )
    if wrong:
        able = ["--layers", *(name for name, (part, _) in given.items() if part in family.planned)]
        raise ConfigError(
            f"expected no {', '.join(wrong)} for a policy of family '{family.name}', which `trim` "
            f"can make smaller by {' and '.join(able)} alone"
        )


def kept_masks(
    statistics: Statistics, layers: Sequence[int], keep: float
) -> tuple[str, ...] | None:
    """Masks of the MLP channels to keep in each of these layers; None: all."""
    if keep == 1.0:
        return None
    assert statistics.worth is not None  # `Family.planned` has promised
    worth = statistics.worth
    return tuple(mask(kept_channels(worth[layer], keep)) for layer in layers)


def with_last(sample: Sample) -> Sample:
    """A sample as the stages take it: with the index of the prompt's last token, where there is
    one.
    """
    return {**sample, "last": sample["length"] - 1} if "length" in sample else sample


def frames_of(
    opened: Checkpoint, shards: list[Path], count: int, seed: int, plan: Plan = DENSE
) -> Frames:
    """Frames of shards, of a LeRobot data set or of a recording as the tensors of the policy under
    a plan.

    ConfigError without a tokenizer.
    """
    described = family_of(opened.cfg).describe(opened, plan)
    prompt = described.prompt
    prompter = None if prompt is None else _prompter(opened, prompt)
    reader = Reader(opened, described, prompter)
    if len(shards) == 1 and (seen := drawn_from(shards[0], described, count, seed)) is not None:
        return reader.frames(seen, str(shards[0]))
    return draw_frames(reader, shards, count, seed)


def _prompter(opened: Checkpoint, prompt: PromptSpec) -> Prompter:
    if opened.tokenizer is None:
        hint = family_of(opened.cfg).tokenizer_hint
        raise ConfigError(f"{opened.directory}: expected tokenizer.json, got none: {hint}")
    return Prompter(load_tokenizer(opened.tokenizer, error=ConfigError), prompt)


def drawn_from(
    named: Path, described: InputsAndOutput, count: int, seed: int
) -> Iterable[Observation] | None:
    """What the policy sees in a data set or a recording, drawn; None for a shard."""
    if is_data_set(named):
        from trimvla.launch.frames.data_set import observations_from_data_set

        return observations_from_data_set(named, described, count, seed)
    if named.suffix in RECORDINGS:
        from trimvla.launch.frames.recorded import observations_from_recording

        return observations_from_recording(named, described, count, seed)
    return None


def find_shards(named: Path | None, source: Path) -> list[Path]:
    """The shard or folder of shards that is named, else those of the source's demonstrations."""
    if named is None:
        return sorted((source / "demos").glob(SHARDS))
    if is_data_set(named):
        return [named]
    if named.is_dir():
        return sorted(named.glob(SHARDS))
    if not named.is_file():
        words = "a shard of demonstrations, a LeRobot data set or a recording"
        raise ConfigError(f"expected {words} for --calibration, got {named}")
    return [named]
