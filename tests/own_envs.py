"""A small environment for tests, as a user's module has it: a dot that must reach a circle.

Its actions have three numbers, two deltas and a gripper, so nothing of it fits a policy of seven.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

SIDE = 32  # of the image [pixels]
STEP = 0.1  # the most that a delta moves


class Reach(gym.Env):
    """One dot, one circle; the third number of an action is a gripper that does nothing."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it
    control_hz = 5.0
    action_kinds = ("delta", "delta", "gripper")
    instruction = "pick up the red cube"

    def __init__(self, dim: int = 3, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Dict(
            {"front": gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)}
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (dim,), np.float32)
        self.place = np.zeros(2)
        self.goal = np.zeros(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        self.goal = self.np_random.uniform(-1, 1, 2)
        self.steps = 0
        return self.observe(), self.tell()

    def step(self, action: np.ndarray) -> Any:
        assert action.shape == self.action_space.shape
        assert action.dtype == np.float32
        self.place = np.clip(self.place + np.clip(action[:2], -STEP, STEP), -1, 1)
        self.steps += 1
        done = self.reached
        return self.observe(), float(done), done, self.steps >= 60, self.tell()

    @property
    def reached(self) -> bool:
        return bool(np.abs(self.place - self.goal).max() < STEP / 2)

    def observe(self) -> Any:
        return {"front": self.render()}

    def tell(self) -> dict[str, Any]:
        return {"success": self.reached}

    def render(self) -> Any:
        image = np.full((SIDE, SIDE, 3), 200, np.uint8)
        for channel, place in ((0, self.goal), (2, self.place)):
            row, column = ((place + 1) / 2 * (SIDE - 1)).astype(int)
            image[row, column] = 0
            image[row, column, channel] = 255
        return image

    def expert(self) -> list[float]:
        delta = np.clip(self.goal - self.place, -STEP, STEP)
        rest = [0.0] * (self.action_space.shape[0] - 3)  # pyright: ignore[reportOptionalSubscript]
        return [*delta.tolist(), *rest, 1.0]


def make() -> gym.Env:
    return Reach()


def make_wide(words: str) -> gym.Env:
    """`make_wide:7`: with so many numbers an action."""
    env = Reach(int(words))
    env.action_kinds = ("delta",) * (int(words) - 1) + ("gripper",)  # pyright: ignore
    return env
