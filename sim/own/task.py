"""Any `gymnasium.Env` as a task of an evaluation; an episode's index is the seed of its reset.

An action reaches `step()` as a robot would receive it: un-normalised, the gripper 1 = open and
0 = closed, in the dtype of the action space and not clipped to its bounds. Knows gymnasium's
interface; `actions` and `observations` define what is taken from where. Knows no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from trimvla.runtime.errors import ConfigError, TrimvlaError
from trimvla.runtime.own_objects import blame
from trimvla.sim.own.actions import (
    action_kinds,
    action_space,
    attribute,
    control_rate,
    start_action,
)
from trimvla.sim.own.observations import describe, find_image, find_instruction, succeeded
from trimvla.sim.own.options import MAX_STEPS, EnvOptions


class GymnasiumTask:
    """Episodes of one environment; see `episodes.Task`."""

    official = 0

    def __init__(self, name: str, env: gym.Env, options: EnvOptions) -> None:
        """Raises ConfigError for an environment whose actions no policy can give."""
        self.name = name
        self.env = env
        self.options = options
        self.space = action_space(name, env)
        self.dim = int(self.space.shape[0])
        self.kinds = action_kinds(name, env, self.dim)
        self.start = start_action(name, env, self.dim)
        self.control_hz = control_rate(name, env, options)
        limit = options.max_steps or getattr(env.spec, "max_episode_steps", None)
        self.limit = int(limit or attribute(env, "max_episode_steps") or MAX_STEPS)

    def episode(self, index: int, *, official: bool) -> GymnasiumEpisode:
        """The episode that begins with `reset(seed=index)`."""
        if official:
            raise ConfigError(f"expected seeds for '{self.name}': it has no official episodes")
        return GymnasiumEpisode(self, index)

    def check(self, seeds: Sequence[int], *, official: bool) -> None:
        """Begin an episode and take a step, before anything is played.

        Raises ConfigError with everything that is missing.
        """
        problems: list[str] = []
        try:
            episode = self.episode(seeds[0] if seeds else 0, official=official)
            null = np.clip(np.zeros(self.dim), self.space.low, self.space.high)
            for look in (lambda: episode.image, lambda: episode.instruction):
                _try(look, problems)
            _try(lambda: episode.step(null), problems)
            if not problems:
                episode.look()
        except TrimvlaError:
            raise
        except Exception as error:  # the user's own code, or gymnasium's checks of it
            raise ConfigError(f"{self.name}: trying one step failed: {blame(error)}") from error
        if problems:
            bare = [problem.removeprefix(f"{self.name}: ") for problem in problems]
            raise ConfigError(f"{self.name}: {'; '.join(bare)}")

    def close(self) -> None:
        """Free the environment."""
        self.env.close()


class GymnasiumEpisode:
    """One episode; an image is taken when it is looked at. See `episodes.Episode`."""

    def __init__(self, task: GymnasiumTask, seed: int) -> None:
        self._task = task
        self._image: np.ndarray | None = None
        self.success = False
        answer = task.env.reset(seed=seed)
        check_answer(task.name, answer, "(observation, info) from reset()", 2)
        self._observation: Any = answer[0]
        self._info: Mapping[str, Any] = answer[1]

    @property
    def image(self) -> np.ndarray:
        """See `episodes.Episode`."""
        if self._image is None:
            task = self._task
            self._image = find_image(task.name, task.env, self._observation, task.options.camera)
        return self._image

    @property
    def instruction(self) -> str:
        """See `episodes.Episode`."""
        task = self._task
        return find_instruction(task.name, task.env, self._observation, self._info, task.options)

    def look(self) -> tuple[np.ndarray, str]:
        """Image and instruction; raises ConfigError where one of them is missing."""
        return self.image, self.instruction

    def step(self, action: np.ndarray) -> bool:
        """See `episodes.Episode`."""
        task = self._task
        answer = task.env.step(np.asarray(action, task.space.dtype))
        expected = "(observation, reward, terminated, truncated, info) from step()"
        check_answer(task.name, answer, expected, 5)
        self._observation, reward, terminated, truncated, self._info = answer
        self._image = None
        done = bool(terminated)
        self.success = succeeded(task.name, float(reward), done, self._info, task.options)
        return done or bool(truncated)

    def expert(self) -> np.ndarray:
        """See `episodes.Episode`; the environment's method `expert()`."""
        task = self._task
        expert = attribute(task.env, "expert")
        if not callable(expert):
            raise ConfigError(
                f"{task.name}: expected a method expert() of the environment, got none"
            )
        action = np.asarray(expert(), np.float32)
        if action.shape != (task.dim,):
            got = describe(action)
            raise ConfigError(f"{task.name}: expected {task.dim} numbers from expert(), got {got}")
        return action

    def close(self) -> None:
        """Nothing: the environment is the task's."""


def _try(look: Callable[[], object], problems: list[str]) -> None:
    """Note what is missing."""
    try:
        look()
    except ConfigError as error:
        problems.append(str(error))


def check_answer(name: str, answer: object, expected: str, length: int) -> None:
    """Raise ConfigError unless it is a tuple of so many values with `info` last."""
    fits = isinstance(answer, tuple) and len(answer) == length and isinstance(answer[-1], Mapping)
    if not fits:
        raise ConfigError(f"{name}: expected {expected}, got {describe(answer)}")
