"""The tabletop as a task of an evaluation: an episode is fixed by its seed and ends with success or at the limit."""

from __future__ import annotations

import numpy as np

from trimvla.runtime.errors import ConfigError
from trimvla.sim import expert
from trimvla.sim.scene import VARIANTS
from trimvla.sim.tabletop import CONTROL_HZ, MAX_STEPS, TabletopEnv


class TabletopEpisode:
    """One table and one sentence; see `episodes.Episode`."""

    def __init__(self, env: TabletopEnv, seed: int) -> None:
        observation, info = env.reset(seed=seed)
        self._env = env
        self.image: np.ndarray = observation["image"]
        self.instruction = env.instruction
        self.success = bool(info["success"])

    def step(self, action: np.ndarray) -> bool:
        """See `episodes.Episode`."""
        observation, _, done, cut, info = self._env.step(action)
        self.image, self.success = observation["image"], bool(info["success"])
        return done or cut

    def expert(self) -> np.ndarray:
        """See `episodes.Episode`."""
        scene = self._env.scene()
        dx, dy, dz, dyaw, gripper = expert.act(scene, self._env.state(), scene.goal)
        return np.array([dx, dy, dz, 0.0, 0.0, dyaw, gripper], np.float32)

    def close(self) -> None:
        """Nothing: the environment is the task's."""


class TabletopTask:
    """All episodes of one variant; there is no official grid. See `episodes.Task`."""

    control_hz = float(CONTROL_HZ)
    limit = MAX_STEPS
    official = 0

    def __init__(self, variant: str) -> None:
        self.name = "tabletop" if variant == "default" else f"tabletop:{variant}"
        self._env = TabletopEnv(variant=variant)

    def episode(self, index: int, *, official: bool) -> TabletopEpisode:
        """The table of seed `index`."""
        if official:
            raise ConfigError("expected further seeds for 'tabletop': it has no official episodes")
        return TabletopEpisode(self._env, index)

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()


def make(variant: str) -> TabletopTask:
    """The task `tabletop` (no variant) or `tabletop:<variant>`."""
    known = {"default", *VARIANTS}
    if variant not in {"", *known}:
        raise ConfigError(f"expected a variant out of {sorted(known)}, got {variant!r} for 'tabletop'")
    return TabletopTask(variant or "default")
