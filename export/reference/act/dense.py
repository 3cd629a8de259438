"""What our policy gives for the arrays of an ACT reference directory.

Each function yields (key, value) for the keys of one part, fed with the *stored* inputs of that
part, so a difference points at the part that made it. What is compared, and how closely, is in
`groups`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.act.directory import ActReference
from trimvla.export.reference.groups import Values
from trimvla.policies.act.source import ENVIRONMENT, STATE
from trimvla.policies.act.stages import stages
from trimvla.runtime.bundle.action_statistics import chosen, chosen_state
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.scale import unnormalise
from trimvla.runtime.preprocess.letterbox import images_tensor
from trimvla.runtime.preprocess.state import check_state, state_vector

DENSE = Plan()
EVERY = 8  # of an image's rows and columns, which of them are stored
ROUNDS = {"in": "action", "second": "second"}
"""Observation -> what its chunk is stored under."""


def images(ref: ActReference, part: str = "in") -> Tensor:
    """Stored images as the runtime makes the vision stage's input of them."""
    given = {name: ref.array(f"{part}/{feature}") for name, feature in ref.features.items()}
    return torch.from_numpy(images_tensor(given, ref.described.images))


def states(ref: ActReference, part: str = "in") -> Tensor | None:
    """Stored states as the runtime makes the action stage's input of them."""
    spec = ref.described.state
    if spec is None:
        return None
    names = [f"{part}/{feature}" for feature in (STATE, ENVIRONMENT)]
    numbers = np.concatenate([ref.array(name) for name in names if name in ref.arrays])
    checked = check_state(numbers, spec)
    assert checked is not None
    table = ref.checkpoint.table
    scale = chosen_state(table, ref.checkpoint.statistics_key, spec)
    return torch.from_numpy(state_vector(checked, spec, scale))[None]


def pixels(ref: ActReference) -> Values:
    """Standardised images, some of their rows and columns."""
    made = ref.policy.vision.pixels(images(ref))
    for index, name in enumerate(ref.features):
        yield f"pixels/{name}", made[index : index + 1, :, ::EVERY, ::EVERY]


def state(ref: ActReference) -> Values:
    """The states, normalised."""
    made = states(ref)
    if made is not None:
        yield "state/robot", made[:, : ref.cfg.state_dim]
        yield "state/environment", made[:, ref.cfg.state_dim :]


def backbone(ref: ActReference) -> Values:
    """Each camera's features."""
    made = ref.policy.vision.backbone(ref.policy.vision.pixels(images(ref)))
    for index, name in enumerate(ref.features):
        yield f"backbone/{name}", made[index : index + 1]


def tokens(ref: ActReference) -> Values:
    """What enters the encoder: from the stored features."""
    features = torch.cat([ref.tensor(f"backbone/{name}") for name in ref.features])
    parts = [f"state/{name}" for name in ("robot", "environment")]
    found = [ref.tensor(key).reshape(1, -1) for key in parts if key in ref.arrays]
    read = torch.cat(found, dim=1) if found else None
    yield "encoder/tokens", ref.policy.encoder.tokens(ref.policy.vision.project(features), read)[0]
    yield "encoder/positions", ref.policy.encoder.positions()


def encoded(ref: ActReference) -> Values:
    """The encoder from its stored input."""
    positions = ref.tensor("encoder/positions")
    yield "encoder/out", ref.policy.encoder(ref.tensor("encoder/tokens")[None], positions)[0]


def decoded(ref: ActReference) -> Values:
    """The decoder from the stored output of the encoder."""
    positions = ref.tensor("encoder/positions")
    yield "decoder/out", ref.policy.decoder.rows(ref.tensor("encoder/out")[None], positions)[0]


def actions(ref: ActReference) -> Values:
    """Chunks of both observations, from pixels and state through the stages."""
    for part, kept in ROUNDS.items():
        if f"{kept}/normalized" in ref.arrays:
            yield f"{kept}/normalized", chunk(ref, part)


def chunk(ref: ActReference, part: str) -> Tensor:
    """float[1, H, A]."""
    tensors = {"images": images(ref, part)}
    read = states(ref, part)
    if read is not None:
        tensors["state"] = read
    for stage in stages(ref.cfg, DENSE):
        tensors |= ref.runs.run(DENSE, stage, tensors)
    return tensors["actions"]


def unnormalized(ref: ActReference) -> Values:
    """Stored normalised actions in the robot's units."""
    scale = chosen(ref.checkpoint.table, ref.checkpoint.statistics_key, ref.described.action)
    for kept in ROUNDS.values():
        if f"{kept}/unnormalized" in ref.arrays:
            yield f"{kept}/unnormalized", unnormalise(ref.array(f"{kept}/normalized"), scale)
