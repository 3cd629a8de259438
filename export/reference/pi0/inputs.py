"""What the runtime makes of the stored images, text and state, for the arrays of a reference
directory.

Yields (key, value) for the keys of one part. Which are compared, and how closely, is decided in
`groups`.
"""

from __future__ import annotations

import re

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.export.reference.groups import Values
from trimvla.export.reference.pi0.directory import Pi0Reference
from trimvla.runtime.bundle.scale import unnormalise
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.letterbox import images_tensor
from trimvla.runtime.preprocess.prompts import Prompter
from trimvla.runtime.preprocess.state import check_state, state_text, state_vector

BLACK = 0.0
"""Padding of an image of pixels from 0 to 1."""
OLD_BLACK = -1.0
"""The same as LeRobot had it up to 0.4.4, before x * 2 - 1."""


def pixels(ref: Pi0Reference) -> Values:
    """Stored images, resized, padded and mapped to -1 to 1, an absent camera -1 everywhere; which
    cameras are there.
    """
    for prefix, black in (("pixels", OLD_BLACK), ("pixels_openpi", BLACK)):
        images = square_images(ref, black)
        made = ref.policy.vision.normalise(images)
        for index, feature in enumerate(ref.features):
            yield f"{prefix}/{feature}", made[index : index + 1]
        for feature in ref.absent:
            key = f"{prefix}/{feature}"
            if key in ref.arrays:
                yield key, np.full_like(ref.array(key), -1.0)
    for features, there in ((ref.features, True), (ref.absent, False)):
        for feature in features:
            yield f"pixels/{feature}_mask", np.array([there])


def square_images(ref: Pi0Reference, black: float) -> Tensor:
    """The stored images as the vision stage takes them: float32[C, S, S, 3]."""
    spec = msgspec.structs.replace(ref.described.images, pad_value=(black, black, black))
    names = zip(spec.names, ref.features, strict=True)
    images = {name: ref.array(f"in/{feature}") for name, feature in names}
    return torch.from_numpy(images_tensor(images, spec))


def state(ref: Pi0Reference) -> Values:
    """The stored state, normalised and padded."""
    vector = normalised_state(ref)
    yield "in/state_normalized", vector[None, : ref.policy.cfg.state_dim]
    yield "in/state_padded", vector[None]


def normalised_state(ref: Pi0Reference) -> np.ndarray:
    """float32[padded state]."""
    assert ref.described.state is not None
    spec = msgspec.structs.replace(ref.described.state, padded=ref.policy.cfg.padded_state_dim)
    checked = check_state(ref.array("in/observation.state"), spec)
    assert checked is not None
    return state_vector(checked, spec, ref.scale("state"))


def prompt(ref: Pi0Reference) -> Values:
    """Stored ids -> text -> instruction; that and our own text of the state -> ids again."""
    if ref.checkpoint.tokenizer is None:
        raise ConfigError(
            f"{ref.directory}: expected tokenizer.json, got none: {ref.family.tokenizer_hint}"
        )
    spec = ref.described.prompt
    assert spec is not None
    prompter = Prompter.load(ref.checkpoint.tokenizer, spec)
    tokenizer = Tokenizer.from_file(str(ref.checkpoint.tokenizer))
    for key, match in ref.matches(r"(in|second|current)/input_ids"):
        stored, length = ref.ids(match[1])
        bos = 0 if spec.bos_id is None else 1
        text = tokenizer.decode(stored[0, bos : int(length)].tolist(), skip_special_tokens=False)
        ids, last = prompter.ids(instruction_in(text, ref), text_of_state(ref, match[1]))
        longest = stored.shape[1]
        padding = ref.policy.cfg.prompt.pad_id
        yield key, np.pad(ids, ((0, 0), (0, longest - ids.shape[1])), constant_values=padding)
        yield f"{match[1]}/language_mask", np.arange(longest)[None] <= last


def instruction_in(text: str, ref: Pi0Reference) -> str:
    """What stands at {instruction} in a filled template."""
    template = ref.policy.cfg.prompt.template
    parts = (re.escape(part) for part in re.split(r"\{(?:instruction|state)\}", template))
    pattern = "(.*?)".join(parts) + r"\n?"
    found = re.fullmatch(pattern, text, re.DOTALL)
    if found is None:
        raise ConfigError(f"reference.npz: expected ids of {template!r}, got {text!r}")
    return found[1]


def text_of_state(ref: Pi0Reference, prefix: str) -> str:
    """The state as pi0.5's prompt has it: padded first up to LeRobot 0.4.4, as the robot has it in
    `current/`.
    """
    spec = ref.described.state
    if spec is None or spec.bins is None:
        return ""
    vector = normalised_state(ref)
    return state_text(
        vector[: ref.policy.cfg.state_dim] if prefix == "current" else vector, spec.bins
    )


def unnormalized(ref: Pi0Reference) -> Values:
    """Stored normalised actions in the robot's units; differences count in units of the statistics'
    spread.
    """
    scale = ref.scale("action")
    high = np.array(scale.high or 1.0)
    spread = high - (np.array(scale.low) if scale.mode in ("quantiles", "min_max") else 0.0)
    for key, match in ref.matches(r"(action|current)/unnormalized"):
        stored = ref.array(key)
        made = unnormalise(ref.array(f"{match[1]}/normalized"), scale)
        yield key, stored + (made - stored) / np.maximum(1.0, np.abs(spread))
