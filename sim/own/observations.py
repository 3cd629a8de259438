"""What an environment gives at a step: the image, the instruction, and whether it is done.

Each is looked for where gymnasium's environments have it; what is nowhere is one error that names
the places. Knows gymnasium's observations and `info`; no policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from trimvla.runtime.errors import ConfigError
from trimvla.sim.own.actions import attribute
from trimvla.sim.own.options import RENDER, EnvOptions

INSTRUCTION = "instruction"  # key of an observation or of `info`, or attribute of the environment
SUCCESS = ("success", "is_success")  # keys of `info`
RGB = "rgb_array"  # of `render_mode`


def find_image(name: str, env: gym.Env, observation: object, camera: str | None) -> np.ndarray:
    """The image uint8[h, w, 3] that a policy is shown.

    Args:
        name: of the task, for the error.
        env: for its `render()`.
        observation: the newest.
        camera: a key of it, `render`, or None: the observation's only image, else `render()`.

    Raises:
        ConfigError: there is none there, or several where none was named.
    """
    found = leaves(observation)
    if camera == RENDER:
        return _rendered(name, env)
    if camera is not None:
        if camera not in found:
            known = ", ".join(key for key in found if key) or "none"
            words = f"--camera as {RENDER} or a key of the observation ({known})"
            raise ConfigError(f"{name}: expected {words}, got {camera!r}")
        return _checked(name, found[camera], f"the observation's '{camera}'")
    images = [key for key, value in found.items() if _is_image(value)]
    if len(images) > 1:
        words = f"--camera as one of {', '.join(images)}"
        raise ConfigError(f"{name}: expected {words}: the observation has several images")
    if images:
        return found[images[0]]
    if env.render_mode != RGB:
        words = f"an image uint8[h, w, 3] in the observation, or render_mode='{RGB}'"
        got = f"{describe(observation)} and render_mode={env.render_mode!r}"
        raise ConfigError(f"{name}: expected {words}, got {got}")
    return _rendered(name, env)


def shows_image(env: gym.Env) -> bool:
    """Whether an observation holds an image, by its space."""
    spaces = leaves(env.observation_space).values()
    return any(
        isinstance(space, gym.spaces.Box)
        and space.dtype == np.uint8
        and _is_image_shape(space.shape)
        for space in spaces
    )


def _rendered(name: str, env: gym.Env) -> np.ndarray:
    if env.render_mode != RGB:
        words = f"render_mode='{RGB}' for --camera {RENDER}"
        raise ConfigError(f"{name}: expected {words}, got {env.render_mode!r}")
    return _checked(name, env.render(), "render()")


def _is_image(value: object) -> bool:
    if not isinstance(value, np.ndarray):
        return False
    return value.dtype == np.uint8 and _is_image_shape(value.shape)


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] == 3 and min(shape) > 0


def _checked(name: str, value: object, source: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or not _is_image(value):
        got = describe(value)
        raise ConfigError(f"{name}: expected uint8[h, w, 3] from {source}, got {got}")
    return value


def leaves(value: object, prefix: str = "") -> dict[str, Any]:
    """What lies under each key, inner keys behind a dot; what is no mapping lies under ''."""
    if not isinstance(value, Mapping | gym.spaces.Dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def find_instruction(
    name: str, env: gym.Env, observation: object, info: Mapping[str, Any], options: EnvOptions
) -> str:
    """What is asked now: by the option, the observation, `info` or the environment, in this order.

    Raises ConfigError where nothing gives it.
    """
    inside = observation.get(INSTRUCTION) if isinstance(observation, Mapping) else None
    places = (options.instruction, inside, info.get(INSTRUCTION), attribute(env, INSTRUCTION))
    found = next((each for each in places if each is not None), None)
    if not isinstance(found, str) or not found.strip():
        where = f"--instruction, or '{INSTRUCTION}' of the observation, info or the environment"
        raise ConfigError(f"{name}: expected words for {where}, got {found!r}")
    return found


def succeeded(
    name: str, reward: float, terminated: bool, info: Mapping[str, Any], options: EnvOptions
) -> bool:
    """Whether the episode has succeeded as of this step.

    By `success_reward` where it is given: terminated, with at least that reward. Else by `info`.

    Raises:
        ConfigError: neither is there, or `info` holds no truth value.
    """
    if options.success_reward is not None:
        return terminated and reward >= options.success_reward
    key = next((each for each in SUCCESS if each in info), None)
    if key is None:
        keys = " or ".join(f"'{each}'" for each in SUCCESS)
        rule = "--success-reward R (terminated with at least this reward)"
        raise ConfigError(f"{name}: expected {keys} in info, or {rule}, got {sorted(info)}")
    value = np.asarray(info[key])
    if value.size != 1 or value.dtype.kind not in "biuf":
        got = repr(info[key])[:80]
        raise ConfigError(f"{name}: expected true or false for info['{key}'], got {got}")
    return bool(value.reshape(-1)[0])


def describe(value: object) -> str:
    """A value's type, and its shape or keys, in a few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {describe(each)}" for key, each in value.items())
        return f"{{{inner[:200]}}}"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return type(value).__name__
