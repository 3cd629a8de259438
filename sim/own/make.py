"""Makes tasks of `gymnasium:ID` and of `module:attribute`, a function that returns an environment.

Knows what such a function may return: a `gymnasium.Env`, or a whole task (`episodes.Task`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import Reference, blame, load_function, load_module
from trimvla.sim.gymnasium_ids import register
from trimvla.sim.own.observations import RGB, describe, shows_image
from trimvla.sim.own.options import RENDER, EnvOptions
from trimvla.sim.own.task import GymnasiumTask

if TYPE_CHECKING:
    from trimvla.sim.episodes import Task

FAMILY = "gymnasium"
TASK = ("name", "control_hz", "limit", "official", "dim", "kinds", "episode", "close")


def make_registered(words: str, options: EnvOptions) -> Task:
    """The task `gymnasium:ID`; `gymnasium:module:ID` imports the module that registers it.

    Raises ConfigError where gymnasium cannot make it.
    """
    name = f"{FAMILY}:{words}"
    module = words.rpartition(":")[0]
    register()
    if module:
        load_module(module, f"--env {name}")
    env = _registered(name, words, RGB if options.camera == RENDER else None)
    renders = RGB in (env.metadata.get("render_modes") or ())
    if options.camera is None and renders and env.render_mode != RGB and not shows_image(env):
        env.close()
        env = _registered(name, words, RGB)
    return GymnasiumTask(name, env, options)


def _registered(name: str, words: str, render_mode: str | None) -> gym.Env:
    mode: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gym.make(words, **mode)
    except Exception as error:  # gymnasium's own, and whatever an environment needs and lacks
        raise ConfigError(f"--env {name}: making it failed: {blame(error)}") from error


def make_own(reference: Reference, options: EnvOptions) -> Task:
    """The task that a function of the user's own makes; it takes the words behind its name, if any.

    Raises ConfigError for what is not found, fails, or returns something else.
    """
    words = (reference.words,) if reference.words else ()
    name = ":".join([str(reference), *words])
    option = f"--env {name}"
    make = load_function(str(reference), option, ("words",) if words else ())
    try:
        made = make(*words)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{option}: making it failed: {blame(error)}") from error
    if isinstance(made, gym.Env):
        return GymnasiumTask(name, made, options)
    lacking = [each for each in TASK if not hasattr(made, each)]
    if lacking:
        got = f"{describe(made)} without {', '.join(lacking)}"
        raise ConfigError(f"{option}: expected a gymnasium.Env, or a task, got {got}")
    if given := options.given():
        words_given = ", ".join(given)
        raise ConfigError(
            f"{option}: expected no {words_given}: it is a task, which says all itself"
        )
    return made
