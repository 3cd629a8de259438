"""One observation, as every policy takes it, and the tensors that its bundle makes of it.

Cameras go by the names that the policy knows them by; who has other names (a robot, a client) maps
them first. Everything is checked before anything is computed: one clear error for a camera too many
or too few, a state that does not fit, or a prompt that is too long. Knows a manifest; not a
network, a clock or a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.manifest import PLAIN, Manifest
from trimvla.runtime.bundle.mode_problems import external_inputs
from trimvla.runtime.bundle.scale import Scale
from trimvla.runtime.errors import ObservationError
from trimvla.runtime.preprocess.letterbox import images_tensor
from trimvla.runtime.preprocess.prompts import Prompter
from trimvla.runtime.preprocess.state import (
    check_state,
    check_state_names,
    state_text,
    state_vector,
)

ONLY = ""
"""The name of an image whose camera is not named: the only one that the policy looks through."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy acts on."""

    images: Mapping[str, NDArray[np.uint8]]
    """RGB uint8[h, w, 3] of any size, by the policy's names of its cameras."""
    instruction: str
    """What to do; policies that read none ignore it."""
    state: NDArray[np.floating[Any]] | None = None
    """float[dim] in the robot's units; policies that read none ignore it."""
    state_names: tuple[str, ...] = ()
    """Of the state's numbers, where the robot names them: they must be those of the policy, in
    its order.
    """


def one_image(image: NDArray[np.uint8], instruction: str) -> Observation:
    """The observation of a policy with one camera and no state."""
    return Observation({ONLY: image}, instruction)


def blank_observation(
    manifest: Manifest, instruction: str = "warm up", side: int = 64
) -> Observation:
    """Black images of every camera and a state of zeros: what a bundle is warmed up and timed
    with.
    """
    black = np.zeros((side, side, 3), np.uint8)
    state = None if manifest.state is None else np.zeros(manifest.state.dim)
    return Observation(dict.fromkeys(manifest.images.names, black), instruction, state)


class Inputs:
    """Makes a bundle's input tensors."""

    def __init__(
        self, manifest: Manifest, prompter: Prompter | None, state: Scale | None = None
    ) -> None:
        """`prompter`: None for a policy that reads no instruction; `state`: how the state is
        scaled, where the policy reads one.
        """
        self._images = manifest.images
        self._state = manifest.state
        self._prompter = prompter
        self._scale = state
        self._taken = set(external_inputs(manifest, PLAIN))

    def tensors(self, observation: Observation) -> dict[str, NDArray[Any]]:
        """By name: images, and of `input_ids`, `last`, `length` and `state` those that a stage
        takes.

        Raises:
            ObservationError: an image or the state does not fit, a camera is missing or one too
                many.
            PromptError: an empty instruction, or a prompt longer than the largest bucket.
        """
        images = self._named(observation.images)
        vector = self._vector(observation)
        made: dict[str, NDArray[Any]] = {}
        if self._prompter is not None:
            made |= self._prompt(self._prompter, observation.instruction, vector)
        made[self._images.tensor] = images_tensor(images, self._images)
        if vector is not None:
            made["state"] = vector[None]
        return {name: tensor for name, tensor in made.items() if name in self._taken}

    def _prompt(
        self, prompter: Prompter, instruction: str, vector: NDArray[np.float32] | None
    ) -> dict[str, NDArray[Any]]:
        text = ""
        if vector is not None and self._state is not None and self._state.into == "text":
            text = state_text(vector, self._state.bins or 0)
        ids, last = prompter.ids(instruction, text)
        return {"input_ids": ids, "last": last, "length": last + 1}

    def _named(self, images: Mapping[str, NDArray[np.uint8]]) -> Mapping[str, NDArray[np.uint8]]:
        if not isinstance(images, Mapping):
            raise ObservationError(
                f"expected images by the names of the cameras {list(self._images.names)}, got"
                f" {type(images).__name__}"
            )
        if set(images) != {ONLY}:
            return images
        names = self._images.names
        if len(names) != 1:
            raise ObservationError(
                f"expected images of the cameras {list(names)}, got one without a name"
            )
        return {names[0]: images[ONLY]}

    def _vector(self, observation: Observation) -> NDArray[np.float32] | None:
        check_state_names(observation.state_names, self._state)
        state = check_state(observation.state, self._state)
        if state is None or self._state is None or self._scale is None:
            return None
        return state_vector(state, self._state, self._scale)
