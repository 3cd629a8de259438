"""What ran in a policy call, by the manifest's plan, and how long it took, by the call's own clock.

Knows what a plan leaves out; draws nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trimvla.launch.figures.call_picture import CallStory
from trimvla.launch.inspection.look import Look
from trimvla.policies.families import image_tokens, parse_config
from trimvla.policies.trimming.places import seen_places
from trimvla.runtime.bundle.manifest import PLAIN, Manifest, PatchSpec
from trimvla.runtime.inference.policy import Policy, PolicyResult
from trimvla.runtime.record.replay import compare


def story_of(policy: Policy, look: Look, result: PolicyResult) -> CallStory:
    """What ran, by the manifest's plan, and how long, as the call measured."""
    manifest = policy.manifest
    seen, patches = visual_tokens(manifest)
    layers, steps = depth(manifest)
    recompute = range(steps) if manifest.plan.recompute is None else manifest.plan.recompute
    return CallStory(
        images=look.observation.images,
        instruction=look.observation.instruction,
        bundle=manifest.name,
        grid=raster(patches // len(manifest.images.cameras), *manifest.images.shape),
        kept=np.array(seen) if result.kept is None else result.kept,
        layers=tuple(range(layers)) if manifest.plan.layers is None else manifest.plan.layers,
        all_layers=layers,
        recompute=tuple(recompute),
        steps=steps,
        milliseconds=result.milliseconds,
        same=None if look.call is None else compare(look.call, result.actions) is None,
        guidance=manifest.plan.guidance,
        patch=None if manifest.patch is None else patch_in_words(manifest.patch),
    )


def patch_in_words(patch: PatchSpec) -> str:
    """Which recovered weights a bundle has, and how they were made."""
    record = patch.recovery
    what = f"{', '.join(record.parts)} recovered in {record.steps} steps"
    return f"{what} on {record.frames} images of {record.source}, patch {patch.sha256[:12]}"


def raster(count: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image's visual tokens: of all that give the count, those whose ratio
    is nearest to the image's.
    """
    pairs = ((rows, count // rows) for rows in range(1, count + 1) if count % rows == 0)
    return min(pairs, key=lambda pair: abs(math.log(pair[0] * width / (pair[1] * height))))


def visual_tokens(manifest: Manifest) -> tuple[tuple[int, ...], int]:
    """Raster indices, over all cameras, of the visual tokens that the encoders give, and how many
    there are before patches leave.
    """
    plan = manifest.plan
    if plan.vision is None or plan.vision.patches is None:
        first = manifest.stages[manifest.modes[PLAIN][0]]
        rows = int(first.tensor("visual").shape[-2])
        return tuple(range(rows)), rows
    cfg = parse_config(manifest.policy)
    count = image_tokens(cfg, plan)
    cameras = len(manifest.images.cameras)
    seen = seen_places(plan, count)
    return tuple(n * count + place for n in range(cameras) for place in seen), cameras * count


def depth(manifest: Manifest) -> tuple[int, int]:
    """Language layers of the dense policy, and sampler steps; 0 where the manifest has none."""
    policy: dict[str, Any] = manifest.policy
    flow = 0 if manifest.flow is None else manifest.flow.steps
    steps = manifest.plan.steps or policy.get("diffusion", {}).get("inference_steps", flow)
    text = policy.get("language") or policy.get("text") or {}
    return text.get("layers", 0), steps
