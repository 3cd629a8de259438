"""The tabletop as a task of an evaluation: an episode is fixed by its seed and ends with success or
at the limit.
"""

from __future__ import annotations

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError
from trimvla.sim.actor import KINDS
from trimvla.sim.tabletop import expert
from trimvla.sim.tabletop.env import CONTROL_HZ, MAX_STEPS, TabletopEnv
from trimvla.sim.tabletop.scene import VARIANTS

SWAPPED = "swapped"


class TabletopEpisode:
    """One table and one instruction; see `episodes.Episode`."""

    def __init__(self, env: TabletopEnv, seed: int, swapped: bool) -> None:
        observation, info = env.reset(seed=seed)
        self._env = env
        self.image: np.ndarray = observation["image"]
        self.instruction = env.swapped_instruction() if swapped else env.instruction
        self.kind = env.scene().goal.verb
        self.success = bool(info["success"])

    @property
    def images(self) -> dict[str, np.ndarray]:
        """What every camera sees now; drawn when it is asked for."""
        return {"front": self.image, "wrist": self._env.picture("wrist")}

    @property
    def state(self) -> np.ndarray:
        """Where the robot is, as it publishes it: float32[5] (`env.STATE`)."""
        return self._env.robot_state()

    def step(self, action: np.ndarray) -> bool:
        """See `episodes.Episode`."""
        observation, _, done, cut, info = self._env.step(action)
        self.image = observation["image"]
        self.success = bool(info["success"])
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
    dim = len(KINDS)
    kinds: tuple[ActionKind, ...] | None = KINDS

    def __init__(
        self, variant: str = "default", *, swapped: bool = False, observe: bool = True
    ) -> None:
        """`swapped`: an instruction about another object is given; success is still judged by the
        original goal.
        """
        words = [variant] * (variant != "default") + [SWAPPED] * swapped
        self.name = ":".join(["tabletop", "+".join(words)]) if words else "tabletop"
        self._env = TabletopEnv(variant=variant, observe=observe)
        self._swapped = swapped

    def episode(self, index: int, *, official: bool) -> TabletopEpisode:
        """The table of seed `index`."""
        if official:
            raise ConfigError("expected further seeds for 'tabletop': it has no official episodes")
        return TabletopEpisode(self._env, index, self._swapped)

    def close(self) -> None:
        """Free the renderer."""
        self._env.close()


def make(words: str) -> TabletopTask:
    """The task `tabletop`, `tabletop:<variant>`, `tabletop:swapped` or
    `tabletop:<variant>+swapped`.
    """
    variant, *rest = [word for word in words.split("+") if word != SWAPPED] or [""]
    if rest or variant not in {"", *VARIANTS}:
        raise ConfigError(
            f"expected a variant out of {sorted(VARIANTS)}, got {words!r} for 'tabletop'"
        )
    return TabletopTask(variant or "default", swapped=SWAPPED in words.split("+"))
