"""How long a policy would take on a device at best: an estimate from sizes and data sheets, no
measurement.

A stage takes as long as its operations at the device's peak, or its weights at the device's
bandwidth, whichever is longer; the head's weights are read again at every sampler step that runs
its blocks, as no device here caches them. No engine is faster; real ones reach a part of the peak,
`attained`. Knows sizes; needs no weights and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.sizes.cost import Cost, Shape, shape_by_counts, shape_of, stage_costs
from trimvla.policies.sizes.cost_report import CostReport, StageCost
from trimvla.runtime.bundle.plan import Plan, TokenPlan, unmask
from trimvla.runtime.bundle.vision_plan import PatchPlan
from trimvla.runtime.errors import ConfigError

BYTES = 2  # of a 16-bit weight
SCALE = "cogact-base"  # what a policy would be on a robot


@dataclass(frozen=True)
class Device:
    """Peak of dense 16-bit matrix products [1e12 operations/s] and memory bandwidth [1e9
    bytes/s].
    """

    title: str
    tflops: float
    gbytes_per_s: float
    source: str


# Data sheets give sparse peaks of narrow types: half of that is dense, and half again for every
# doubling of the bits.
DEVICES = {
    "orin": Device(
        "AGX Orin 64 GB",
        170 / 2 / 2,
        204.8,
        "NVIDIA Jetson AGX Orin Series data sheet: GPU 170 sparse INT8 TOPS, LPDDR5 204.8 GB/s",
    ),
    "thor": Device(
        "AGX Thor (T5000)",
        2070 / 2 / 2 / 2,
        273.0,
        "NVIDIA Jetson Thor data sheet: 2070 sparse FP4 TFLOPS, LPDDR5X 273 GB/s",
    ),
}


@dataclass(frozen=True)
class Floors:
    """The roofline of a policy, and of the one that it stands for on a robot [ms of a chunk]."""

    scale: str
    """The policy at whose size `ms` is."""
    ms: float
    own_ms: float


def find_device(name: str) -> Device:
    """ConfigError lists the devices."""
    if name not in DEVICES:
        raise ConfigError(f"expected one of {sorted(DEVICES)} for 'device', got {name!r}")
    return DEVICES[name]


def estimate_ms(
    cfg: PolicyConfig,
    shape: Shape,
    device: Device,
    attained: float = 1.0,
    prompt: int | None = None,
) -> dict[str, float]:
    """Milliseconds of every stage of one action chunk in 16 bits, and "total".

    Args:
        cfg: the policy's sizes.
        shape: what is kept of it.
        device: a value of `DEVICES`.
        attained: share of the peak and of the bandwidth that is reached, up to 1.
        prompt: ids in the prompt; the smallest bucket when left out.
    """
    if not 0 < attained <= 1:
        raise ConfigError(f"expected a share above 0 and up to 1 for 'attained', got {attained}")
    costs = stage_costs(cfg, shape, cfg.prompt.buckets[0] if prompt is None else prompt)
    table = cfg.language.vocab * cfg.language.width  # looked up, not read
    reads = {
        "language": costs["language"].parameters - table,
        "action": costs["action"].parameters * shape.full_steps,
    }
    stages = {
        name: stage_ms(cost, reads.get(name, cost.parameters), device) / attained
        for name, cost in costs.items()
    }
    return {**stages, "total": sum(stages.values())}


def floors_ms(report: CostReport, device: Device, attained: float = 1.0) -> dict[str, float]:
    """Milliseconds of every stage of one action chunk in 16 bits, and "total", of any family.

    Args:
        report: a family's `cost`.
        device: a value of `DEVICES`.
        attained: share of the peak and of the bandwidth that is reached, up to 1.
    """
    if not 0 < attained <= 1:
        raise ConfigError(f"expected a share above 0 and up to 1 for 'attained', got {attained}")
    stages = {
        name: stage_ms(Cost(0, stage.flops), _weights_read(stage), device) / attained
        for name, stage in report.stages.items()
    }
    return {**stages, "total": sum(stages.values())}


def _weights_read(stage: StageCost) -> int:
    """All of them once, where the report has nothing else."""
    return stage.parameters if stage.weights_read is None else stage.weights_read


def stage_ms(cost: Cost, weights_read: int, device: Device) -> float:
    """The roofline of one stage."""
    return max(cost.flops / device.tflops / 1e9, BYTES * weights_read / device.gbytes_per_s / 1e6)


def scaled_ms(cfg: PolicyConfig, plan: Plan, device: Device, attained: float = 1.0) -> Floors:
    """Of `SCALE` under the same plan, and of the policy itself; see `estimate_ms`."""
    larger = PRESETS[SCALE]
    large, own = (
        estimate_ms(each, same_plan(cfg, plan, each), device, attained)["total"]
        for each in (larger, cfg)
    )
    return Floors(SCALE, large, own)


def same_plan(cfg: PolicyConfig, plan: Plan, larger: PolicyConfig) -> Shape:
    """What a plan would keep of another policy: the same shares of layers, channels, tokens and
    sampler steps.
    """
    if cfg == larger:
        return shape_of(cfg, plan)
    language = cfg.language
    depth = larger.language.layers / language.layers
    layers = language.layers if plan.layers is None else len(plan.layers)
    widths = (
        [language.mlp_hidden]
        if plan.channels is None
        else [len(unmask(text)) for text in plan.channels]
    )
    steps = cfg.diffusion.inference_steps if plan.steps is None else plan.steps
    full = steps if plan.recompute is None else len(plan.recompute)
    counts = shape_by_counts(
        larger,
        layers=round(layers * depth),
        mlp_keep=sum(widths) / len(widths) / language.mlp_hidden,
        tokens=None
        if plan.tokens is None
        else _tokens(plan.tokens, larger.patches / cfg.patches, depth),
        steps=steps,
    )
    guidance = plan.guidance_scale(cfg.diffusion.guidance)
    return Shape(
        counts.mlp, counts.tokens, full, steps, guidance > 1.0, _patches(cfg, plan, larger)
    )


def _patches(cfg: PolicyConfig, plan: Plan, larger: PolicyConfig) -> PatchPlan | None:
    """The same share of patches behind the same share of encoder blocks."""
    patches = None if plan.vision is None else plan.vision.patches
    if patches is None:
        return None
    blocks = [min(vit.feature_block + 1 for vit in one.vision) for one in (cfg, larger)]
    keep = round(patches.keep * larger.patches / cfg.patches)
    after = min(blocks[1] - 1, round(patches.after * blocks[1] / blocks[0]))
    return msgspec.structs.replace(patches, keep=keep, after=after)


def _tokens(tokens: TokenPlan, area: float, depth: float) -> TokenPlan:
    keep = round(tokens.keep * area)
    after = max(1, round(tokens.after * depth))
    return TokenPlan(keep=keep, selector=tokens.selector, after=after, key=min(tokens.key, keep))
