"""What drives an episode: anything that turns an observation into actions. Knows no policy.

A policy sees of an environment what its bundle names: the one image, or several by name, and the
state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind, Manifest
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy_like import PolicyLike
from trimvla.runtime.preprocess.observation import ONLY, Observation

EXPERT = "expert"  # in an actor's place: the scripted expert of the task itself
ROWS = 16  # of a chunk, where an actor has no manifest that gives them
KINDS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)  # of our own tasks
MAIN = ("image", "front", "primary")  # what a policy may call the image that every environment has

MAIN_ALONE = tuple((name,) for name in MAIN)


class Seen(Protocol):
    """The part of an episode that a policy sees; `images` and `state` are there where the
    environment has them.
    """

    @property
    def image(self) -> np.ndarray:
        """uint8[h, w, 3] RGB, of the main camera."""
        ...

    @property
    def instruction(self) -> str:
        """What is asked now."""
        ...


def noise_shape(actor: PolicyLike, dim: int = len(KINDS)) -> tuple[int, int]:
    """Rows and dimensions of the noise that an actor takes: its bundle's, if it has one."""
    manifest: Manifest | None = getattr(actor, "manifest", None)
    if manifest is None:
        return ROWS, dim
    return manifest.action.horizon, manifest.action.sampled_dim


def observe(episode: Seen, actor: PolicyLike) -> Observation:
    """What this actor sees of the episode now.

    Raises:
        ConfigError: the policy looks through a camera, or reads a state, that the environment does
            not have.
    """
    return observe_for(episode, getattr(actor, "manifest", None))


def observe_for(episode: Seen, manifest: Manifest | None) -> Observation:
    """The same for the policy of a manifest; None: one that looks at the main image. Raises as
    `observe` does.
    """
    if manifest is None or (manifest.state is None and manifest.images.names in MAIN_ALONE):
        return Observation({ONLY: episode.image}, episode.instruction)
    more: Mapping[str, Any] = getattr(episode, "images", {})
    state = getattr(episode, "state", None)
    return select({ONLY: episode.image, **more}, state, episode.instruction, manifest)


def observe_as(seen: Mapping[str, np.ndarray], instruction: str, actor: PolicyLike) -> Observation:
    """What this actor sees of a gymnasium observation: `image`, further images, and `state`."""
    manifest: Manifest | None = getattr(actor, "manifest", None)
    if manifest is None:
        return Observation({ONLY: seen["image"]}, instruction)
    images = {name: value for name, value in seen.items() if name not in ("image", "state")}
    return select({ONLY: seen["image"], **images}, seen.get("state"), instruction, manifest)


def select(
    images: Mapping[str, np.ndarray], state: np.ndarray | None, instruction: str, manifest: Manifest
) -> Observation:
    """Of all that an environment gives, what a policy sees; the main image is under `ONLY`.

    Raises:
        ConfigError: see `observe`.
    """
    chosen: dict[str, np.ndarray] = {}
    names = manifest.images.names
    for camera in manifest.images.cameras:
        is_main = camera.name in MAIN or len(names) == 1
        key = ONLY if is_main and camera.name not in images else camera.name
        if key in images:
            chosen[camera.name] = images[key]
        elif camera.required:
            known = sorted(name or MAIN[0] for name in images)
            raise ConfigError(
                f"bundle '{manifest.name}' looks through '{camera.name}': expected it of the "
                f"environment, got {known}"
            )
    if manifest.state is not None and state is None:
        raise ConfigError(
            f"bundle '{manifest.name}' reads the robot's state: this environment gives none"
        )
    return Observation(chosen, instruction, None if manifest.state is None else state)
