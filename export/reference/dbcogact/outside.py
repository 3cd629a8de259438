"""What stands around the modules gives for the arrays of a DB-CogACT reference directory.

Images to pixels, instructions to ids, samples to the robot's units, SIMPLER's actions; and the
whole way from images to actions.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.export.reference.dbcogact.directory import DENSE, PICTURE, DbReference
from trimvla.export.reference.groups import Values
from trimvla.runtime.bundle.scale import unnormalise
from trimvla.runtime.inference.simpler_adapter import SimplerAdapter
from trimvla.runtime.preprocess.letterbox import images_tensor
from trimvla.runtime.preprocess.prompts import Prompter


def images(ref: DbReference, *keys: str) -> Tensor:
    """uint8[C, S, S, 3] of stored images, one a camera."""
    spec = ref.described.images
    by_camera = {name: ref.array(key) for name, key in zip(spec.names, keys, strict=True)}
    return torch.from_numpy(images_tensor(by_camera, spec).copy())


def pixels(ref: DbReference) -> Values:
    """Images, padded, resized and standardised."""
    encoder = ref.policy.vision.encoder
    yield "in/pixel_clip", encoder.normalise(images(ref, "in/image"))
    if "multi/image2" in ref.arrays:
        both = images(ref.two_pictures, "in/image", "multi/image2")
        yield "multi/pixel_clip", encoder.normalise(both)


def prompt(ref: DbReference) -> Values:
    """Stored ids -> instruction -> ids."""
    spec = ref.described.prompt
    assert spec is not None
    prompter = Prompter.load(ref.tokenizer, spec)
    before = ref.policy.cfg.prompt.before_ids
    for key, _ in ref.matches(r"(?:in|second|bi/sample\d+)/input_ids"):
        made = prompter.tokens(instruction(ref, key))
        yield key, np.array([*before, PICTURE, *made])


def instruction(ref: DbReference, key: str) -> str:
    """What the stored ids ask for."""
    start, end = ref.policy.cfg.prompt.after.split("{instruction}")
    ids = ref.halves(key)[1][0].tolist()
    tokenizer = Tokenizer.from_file(str(ref.tokenizer))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return text.removeprefix(start).removesuffix(end)


def normalized(ref: DbReference) -> Values:
    """Each run's last sample, clipped."""
    for key, match in ref.matches(r"action/normalized/(.+)"):
        yield key, clipped(ref.array(f"action/{match[1]}/x")[-1])


def unnormalized(ref: DbReference) -> Values:
    """Each run's stored normalised actions in the robot's units."""
    for key, match in ref.matches(r"action/unnormalized/(.+)/[^/]+"):
        yield key, unnormalise(ref.array(f"action/normalized/{match[1]}"), ref.scale)


def clipped(sample: np.ndarray) -> np.ndarray:
    """A sample as it is scaled back: cut to [-1, 1], no binary gripper."""
    return np.clip(sample, -1.0, 1.0)


def end_to_end(ref: DbReference) -> Values:
    """From the images and the ids to actions, through the whole policy."""
    diffusion = ref.policy.cfg.diffusion
    visual = ref.run("vision", DENSE, images=images(ref, "in/image"))["visual"]
    feature, _ = ref.cognition(DENSE, visual)
    name = f"ddim{diffusion.inference_steps}_cfg{diffusion.guidance}"
    yield f"action/normalized/{name}", clipped(ref.sample(DENSE, feature)[0].numpy())


def second(ref: DbReference) -> Values:
    """Another instruction, the same image and noise."""
    if "second/input_ids" not in ref.arrays:
        return
    feature, _ = ref.cognition(DENSE, ref.tensor("vision/projected"), "second/input_ids")
    sample = ref.sample(DENSE, feature)[0].numpy()
    yield "second/cognition_feature", feature
    yield "second/sample", sample
    for key, _ in ref.matches(r"second/unnormalized/.+"):
        yield key, unnormalise(clipped(sample), ref.scale)


def several_pictures(ref: DbReference) -> Values:
    """Two images at the one place, their tokens in a row."""
    if "multi/image2" not in ref.arrays:
        return
    both = ref.two_pictures
    visual = both.run("vision", DENSE, images=images(both, "in/image", "multi/image2"))["visual"]
    yield "multi/inputs_embeds", both.whole(visual, "in/input_ids")
    feature, _ = both.cognition(DENSE, visual)
    yield "multi/cognition_feature", feature
    sample = clipped(both.sample(DENSE, feature)[0].numpy())
    for key, _ in ref.matches(r"multi/unnormalized/.+"):
        yield key, unnormalise(sample, ref.scale)


def simpler(ref: DbReference) -> Values:
    """SIMPLER's actions on WidowX: rows of every chunk in turn, or the ensemble of all chunks."""
    for _, match in ref.matches(r"(simpler/widowx_bridge/(?:openloop(\d+)|ensemble))/gripper"):
        prefix = match[1]
        rows = list(simpler_steps(ref.array("simpler/chunks"), match[2]))
        for name in ("world_vector", "rot_axangle", "gripper"):
            yield f"{prefix}/{name}", np.stack([row[name] for row in rows])


def simpler_steps(chunks: np.ndarray, rows: str | None) -> Iterator[dict[str, np.ndarray]]:
    """The actions of every step; `rows` of a chunk are played, or (None) all chunks vote."""
    adapter = SimplerAdapter("widowx_bridge", ensemble=rows is None)
    for chunk in chunks:
        played = 1 if rows is None else int(rows)
        for row in range(played):
            yield adapter.step(chunk[row:])[1]


def resized(ref: DbReference) -> Values:
    """The frame as the benchmark's client sends it: squeezed, area averaged."""
    for key, match in ref.matches(r"simpler/resized(\d+)"):
        side = int(match[1])
        yield (
            key,
            cv2.resize(ref.array("simpler/frame"), (side, side), interpolation=cv2.INTER_AREA),
        )
