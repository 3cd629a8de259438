"""What an environment defines of its actions: their size, kinds and rate, and one that keeps it
still.

Each is checked once, when the task is made. Knows gymnasium's spaces and attributes; no policy.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import gymnasium as gym
import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError
from trimvla.sim.own.options import EnvOptions

RATES = ("control_hz", "control_freq")  # attributes
KINDS = "action_kinds"  # attribute
START = "start_action"  # attribute


def attribute(env: gym.Env, name: str) -> Any:  # noqa: ANN401 - the environment's own
    """An attribute of the environment or of one of its wrappers; None where there is none."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None


def action_space(name: str, env: gym.Env) -> gym.spaces.Box:
    """The space of an action. Raises ConfigError unless it is one row of floats."""
    space = env.action_space
    if isinstance(space, gym.spaces.Box) and _is_row_of_floats(space):
        return space
    words = "an action space Box of floats in one dimension"
    raise ConfigError(f"{name}: expected {words}, got {space}")


def _is_row_of_floats(space: gym.spaces.Box) -> bool:
    return len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)


def action_kinds(name: str, env: gym.Env, dim: int) -> tuple[ActionKind, ...] | None:
    """What each number of an action means, where the environment has it as `action_kinds`."""
    found = attribute(env, KINDS)
    if found is None:
        return None
    known = get_args(ActionKind)
    kinds = tuple(found)
    if len(kinds) != dim or not set(kinds) <= set(known):
        words = f"{dim} of {', '.join(known)}"
        raise ConfigError(f"{name}: expected '{KINDS}' with {words}, got {list(kinds)}")
    return kinds


def start_action(name: str, env: gym.Env, dim: int) -> np.ndarray | None:
    """The action float64[dim] before the first one, where the environment has it."""
    found = attribute(env, START)
    if found is None:
        return None
    action = np.asarray(found, np.float64)
    if action.shape != (dim,) or not np.isfinite(action).all():
        raise ConfigError(f"{name}: expected '{START}' with {dim} finite numbers, got {found!r}")
    return action


def control_rate(name: str, env: gym.Env, options: EnvOptions) -> float:
    """Steps per second: the environment's, else the bundle's, else those of its rendering."""
    rates = [value for each in RATES if (value := attribute(env, each)) is not None]
    rate = rates[0] if rates else options.control_hz or env.metadata.get("render_fps")
    if rate is None:
        words = f"'{RATES[0]}' of the environment: nothing says its steps per second"
        raise ConfigError(f"{name}: expected {words}")
    if not isinstance(rate, int | float | np.number) or not 0 < float(rate) < math.inf:
        raise ConfigError(f"{name}: expected '{RATES[0]}' above 0 of the environment, got {rate!r}")
    return float(rate)
