"""What the runtime around the modules gives for the arrays of a reference directory.

Images to pixels, ids to text and back, samples to robot units, the ensemble, the SIMPLER adapter;
and the whole way from an image to actions. Yields (key, value) as `reference_modules` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.export.reference.directory import Reference
from trimvla.export.reference.groups import Values
from trimvla.policies.cogact.source import inputs_and_output
from trimvla.runtime.bundle.action_statistics import load_statistics
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.scale import binarise, unnormalise
from trimvla.runtime.chunks.ensemble import AdaptiveEnsemble
from trimvla.runtime.inference.simpler_adapter import Robot, SimplerAdapter
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.runtime.preprocess.prompts import Prompter

RAW = {
    "raw_world_vector": "world_vector",
    "raw_rotation_delta": "rotation_delta",
    "raw_open_gripper": "open_gripper",
}
DEPLOY_AREA = 0.9  # share of the image's area that the deploy script's second crop keeps


def pixels(ref: Reference) -> Values:
    """The image, resized and standardised for each encoder."""
    square = square_image(ref, "in/image")
    for name, vit in ref.encoders:
        yield f"in/pixel_{name}", vit.normalise(square)


def square_image(ref: Reference, key: str) -> Tensor:
    """uint8[1, S, S, 3] of a stored image."""
    return torch.from_numpy(resize(ref.array(key), ref.policy.cfg.image_size).copy())[None]


def prompt(ref: Reference) -> Values:
    """Stored ids -> text -> instruction -> ids."""
    spec = inputs_and_output(ref.policy.cfg, "").prompt
    assert spec is not None
    prompter = Prompter.load(ref.tokenizer, spec)
    yield "in/input_ids", prompt_again(ref, prompter, ref.array("in/input_ids"))
    if "batch/input_ids" in ref.arrays:
        stored = ref.array("batch/input_ids")
        rows = [
            prompt_again(ref, prompter, row[mask])
            for row, mask in zip(stored, batch_mask(ref), strict=True)
        ]
        yield (
            "batch/input_ids",
            np.stack([_pad(row, stored.shape[1], ref.policy.cfg.prompt.pad_id) for row in rows]),
        )


def prompt_again(ref: Reference, prompter: Prompter, ids: np.ndarray) -> np.ndarray:
    """int64[L] ids without padding -> int64[L'], made anew from the instruction that they spell."""
    before, after = ref.policy.cfg.prompt.template.split("{instruction}")
    text = Tokenizer.from_file(str(ref.tokenizer)).decode(ids[1:-2].tolist())
    made, last = prompter.ids(text.removeprefix(before).removesuffix(after))
    return made[0, : int(last[0]) + 1]


def _pad(ids: np.ndarray, length: int, pad_id: int) -> np.ndarray:
    return np.pad(ids, (0, max(0, length - len(ids))), constant_values=pad_id)


def normalized(ref: Reference) -> Values:
    """Each run's last sample, clipped, with a binary gripper."""
    for key, match in ref.matches(r"action/normalized/(.+)"):
        yield key, binarise(ref.array(f"action/{match[1]}/x")[-1])


def unnormalized(ref: Reference) -> Values:
    """Each run's stored normalised actions in the units of each data set."""
    for key, match in ref.matches(r"action/unnormalized/(.+)/([^/]+)"):
        yield key, in_units(ref, ref.array(f"action/normalized/{match[1]}"), match[2])


def in_units(ref: Reference, actions: np.ndarray, statistics_key: str) -> np.ndarray:
    """Normalised actions in the units of a data set."""
    return unnormalise(actions, load_statistics(ref.statistics, statistics_key))


def end_to_end(ref: Reference) -> Values:
    """From the image and the ids to actions, through the whole policy."""
    diffusion = ref.policy.cfg.diffusion
    stages = ref.stages
    dense = Plan()
    visual = stages.visual(square_image(ref, "in/image"))
    feature, _ = stages.cognition(dense, visual, ref.tensor("in/input_ids")[None])
    sample = stages.sample(dense, feature, ref.tensor("action/noise"))
    yield (
        f"action/normalized/ddim{diffusion.inference_steps}_cfg{diffusion.guidance}",
        binarise(sample[0].numpy()),
    )


def batch(ref: Reference) -> Values:
    """Two images with prompts of different length, all the way, in one batch."""
    image = torch.cat([square_image(ref, key) for key in ("in/image", "batch/image2")])
    last = torch.from_numpy(batch_mask(ref)).sum(dim=1) - 1
    feature = ref.policy.language.cognition(
        ref.policy.vision(image), ref.tensor("batch/input_ids"), last
    )
    yield "batch/cognition_features", feature
    actions = binarise(ref.policy.act(feature, ref.tensor("batch/noise")).numpy())
    yield "batch/normalized", actions
    for key, match in ref.matches(r"batch/unnormalized/(.+)"):
        yield key, in_units(ref, actions, match[1])


def batch_mask(ref: Reference) -> np.ndarray:
    """bool[2, L], True on the ids that are no padding."""
    return ref.array("batch/attention_mask_text").astype(bool)


def ensemble(ref: Reference) -> Values:
    """The adaptive ensemble over the stored chunks, one a step."""
    for key, match in ref.matches(r"ensemble/h(\d+)_alpha([\d.]+)"):
        voters = AdaptiveEnsemble(int(match[1]), float(match[2]))
        yield key, np.stack([voters.step(chunk) for chunk in ref.array("ensemble/chunks")])


def simpler(ref: Reference) -> Values:
    """The SIMPLER adapter's actions for each robot and variant."""
    variants = ref.matches(
        r"(simpler/([^/]+)/(ensemble|first)_(binary|continuous)(?:_reset(\d+))?)/gripper"
    )
    for _, match in variants:
        prefix, robot, mode, kind, reset = match.groups()
        adapter = SimplerAdapter(cast(Robot, robot), ensemble=mode == "ensemble")
        chunks = ref.array(f"simpler/chunks_{kind}_gripper")
        rows = list(adapter_steps(adapter, chunks, None if reset is None else int(reset)))
        for name in rows[0]:
            yield f"{prefix}/{name}", np.stack([row[name] for row in rows])


def adapter_steps(
    adapter: SimplerAdapter, chunks: np.ndarray, reset: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """Actions and raw values of each step, under their stored names; a new task begins at step
    `reset`.
    """
    for step, chunk in enumerate(chunks):
        if step == reset:
            adapter.reset()
        raw, action = adapter.step(chunk)
        yield action | {name: raw[field] for name, field in RAW.items()}


def deploy(ref: Reference) -> Values:
    """The image as CogACT's deploy script prepares it."""
    for key, match in ref.matches(r"deploy/resized(\d+)"):
        yield key, deploy_resize(ref.array("in/image"), int(match[1]))


def deploy_resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[h, w, 3] -> uint8[size, size, 3]: centre square, Lanczos, centre crop of 0.9 of the
    area, Lanczos.
    """
    height, width = image.shape[:2]
    square = centre_crop(Image.fromarray(image), min(height, width)).resize(
        (size, size), Image.Resampling.LANCZOS
    )
    cropped = centre_crop(square, int(size * math.sqrt(DEPLOY_AREA)))
    return np.asarray(cropped.resize((size, size), Image.Resampling.LANCZOS))


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The square of this side in the middle."""
    left = (image.width - side) // 2
    top = (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
