"""From calibration data to a plan: one shot, no training (EfficientVLA, arXiv 2506.10100).

Puts the strategies together and writes down where the decision came from; the strategies are in
`importance`, `width`, `tokens` and `cachers`. The same data, request and time stamp give the same
plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Literal

import msgspec

from trimvla.policies.cogact.family import FAMILY
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.cachers import every
from trimvla.policies.nn.llama import Decoder
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.counts import Trimmable, trimmable, vision_by_counts
from trimvla.policies.trimming.calibrate import (
    Calibration,
    Statistics,
    check_calibration,
    measure,
    samples_of,
    sequences,
)
from trimvla.policies.trimming.importance import most_important
from trimvla.policies.trimming.outputs import Outputs
from trimvla.policies.trimming.own import find_criterion, use_selector
from trimvla.policies.trimming.trimmed import check, kept_layers
from trimvla.policies.trimming.trimmed_language import as_layer
from trimvla.policies.trimming.width import channel_scores, kept_channels
from trimvla.runtime.bundle.plan import Plan, Provenance, TokenPlan, mask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan


@dataclass(frozen=True)
class Request:
    """How much to keep, and by which reasons; what is left out is kept.

    Example:
        >>> from trimvla.policies import PlanRequest
        >>> from trimvla.runtime import TokenPlan
        >>> PlanRequest(layers=14, mlp_keep=0.75, tokens=TokenPlan(keep=56, after=5)).criterion
        'block-influence'
    """

    layers: int | None = None
    criterion: str = "block-influence"
    mlp_keep: float = 1.0
    tokens: TokenPlan | None = None
    patches: PatchPlan | None = None
    image_size: int | None = None
    encoder_blocks: int | None = None
    cache_interval: int = 1
    steps: int | None = None
    guidance: float | Literal["distilled"] | None = None
    seed: int = 0

    def vision_of(self, there: Trimmable) -> VisionPlan | None:
        """What is kept of the image encoder of a policy with so much; see `vision_by_counts`."""
        return vision_by_counts(
            there,
            image_size=self.image_size,
            blocks=self.encoder_blocks,
            patches=self.patches,
        )


def make_plan(policy: CogAct, data: Calibration, request: Request, created_utc: str) -> Plan:
    """Decide what is kept of a policy.

    Args:
        policy: the dense policy.
        data: calibration samples of that policy.
        request: how much to keep.
        created_utc: time stamp for the provenance.

    Raises:
        ConfigError: the data belongs to another policy, or more is to be kept than exists.

    Example:
        >>> import numpy as np
        >>> from tokenizers import Tokenizer
        >>> from trimvla.policies import PlanRequest, calibration_of, load_policy, make_plan
        >>> from trimvla.runtime import find_bundle
        >>> place = find_bundle("tabletop")
        >>> policy = load_policy(place.with_suffix(".safetensors"))
        >>> tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        >>> images = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
        >>> frames = calibration_of(policy.cfg, images, ["pick up the red cube"] * 2, tokenizer)
        >>> plan = make_plan(policy, frames, PlanRequest(layers=12), "2026-11-28T00:00:00Z")
        >>> len(plan.layers), plan.provenance.frames
        (12, 2)
    """
    cfg = policy.cfg
    check_calibration(data, cfg)
    check_request(request, cfg)
    criterion = find_criterion(request.criterion, "--criterion")
    measured = measure(policy.language, sequences(policy, data))
    outputs = Outputs(FAMILY, policy, samples_of(data), request.seed)
    statistics = replace(measured, outputs=outputs)
    scores = criterion(statistics, request.seed)
    drafted = draft(request, cfg, scores)
    layers = kept_layers(drafted, cfg)
    plan = msgspec.structs.replace(
        drafted,
        policy=cfg.fingerprint,
        channels=None
        if request.mlp_keep == 1.0
        else channels(policy.language, statistics, layers, request.mlp_keep),
        provenance=Provenance(
            criterion=request.criterion,
            scores=tuple(scores),
            calibration=data.digest(),
            frames=statistics.samples,
            seed=request.seed,
            created_utc=created_utc,
        ),
    )
    check(plan, cfg)
    return plan


def check_request(request: Request, cfg: PolicyConfig) -> None:
    """Whether a policy has what is to be kept: what can be said before anything is measured.

    Raises ConfigError that names what is too many, or the selector or criterion that does not work.
    """
    find_criterion(request.criterion, "--criterion")
    visual = cfg.patches if request.patches is None else request.patches.keep
    use_selector(request.tokens, visual, "--selector")
    check(draft(request, cfg, [0.0] * cfg.language.layers), cfg)


def draft(request: Request, cfg: PolicyConfig, scores: Sequence[float]) -> Plan:
    """What the request's counts and the layers' scores decide: all but the MLP channels."""
    whole = cfg.language.layers
    layers = most_important(scores, whole if request.layers is None else request.layers)
    steps = cfg.diffusion.inference_steps if request.steps is None else request.steps
    schedule = every(request.cache_interval, steps)
    return Plan(
        layers=None if len(layers) == whole else layers,
        tokens=request.tokens,
        vision=request.vision_of(trimmable(cfg)),
        recompute=None if len(schedule) == steps else schedule,
        steps=request.steps,
        guidance=request.guidance,
    )


def channels(
    decoder: Decoder, statistics: Statistics, layers: Sequence[int], keep: float
) -> tuple[str, ...]:
    """Masks of the MLP channels to keep in each kept layer."""
    chosen = (
        channel_scores(
            as_layer(decoder.layers[index]).mlp,
            statistics.inputs[index],
            statistics.channels[index],
        )
        for index in layers
    )
    return tuple(mask(kept_channels(scores, keep)) for scores in chosen)


def time_stamp() -> str:
    """This moment in UTC, to the second, as a plan's `created_utc`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
