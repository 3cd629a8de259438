"""How SimplerEnv brings objects to rest: they fall from half a metre above the table, upright, and
are let alone.

ManiSkill 3 lays its objects down about where they rest instead, and the eggplant on its other
sides: by ManiSkill's contacts an upright eggplant rolls away, by SimplerEnv's it lies where it
fell. So both belong together. Heights, times and limits are facts of ManiSkill2_real2sim
(`envs/custom_scenes`, `envs/sapien_env.py`). Knows ManiSkill's scene and actors as they come; knows
no task.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 250  # of the simulation at 500 Hz: half a second to fall upright, and half a second free
LONGER = 750  # more steps where something still moves then
DAMPING = 0.1  # linear and angular, while objects come to rest
# no turn about x and y: locked motions, then turns
UPRIGHT = [False, False, False, True, True, False]
# of the whole episode
CONTACTS = {"contact_offset": 0.005, "solver_position_iterations": 25, "enable_pcm": False}
AWAY = [-10.0, 0.0, 0.0]  # where the robot waits meanwhile [m]


class Drop:
    """Stands in for `_settle` of ManiSkill's environment while it begins an episode.

    ManiSkill places the objects, calls it, looks whether something still moves, faster than 1 mm/s
    or 0.01 rad/s all together as in SimplerEnv, and if so calls it once more.
    """

    def __init__(self, env: Any) -> None:  # noqa: ANN401 (ManiSkill's classes are known only once it is imported)
        self._env = env
        self._fallen = False

    def __call__(self, _: float) -> None:
        """Let the objects fall the first time, wait longer the second time; ManiSkill's own
        duration does not count.
        """
        actors = list(self._env.objs.values())
        with damped(actors):
            if self._fallen:
                self._step(LONGER)
            else:
                self._fall(actors)
        self._fallen = True

    def _fall(self, actors: Iterable[Any]) -> None:
        import numpy as np
        import sapien

        self._env.agent.robot.set_pose(sapien.Pose(AWAY))  # ManiSkill puts it back afterwards
        lock(actors, UPRIGHT)
        self._step(STEPS)
        lock(actors, [False] * len(UPRIGHT))
        for actor in actors:
            actor.set_pose(actor.pose)  # or it might sleep
            actor.set_linear_velocity(np.zeros(3))
            actor.set_angular_velocity(np.zeros(3))
        self._step(STEPS)

    def _step(self, count: int) -> None:
        for _ in range(count):
            self._env.scene.step()


def lock(actors: Iterable[Any], axes: list[bool]) -> None:
    """Lock these motions of every actor: along x, y, z, about x, y, z."""
    for actor in actors:
        for body in actor._bodies:
            body.set_locked_motion_axes(axes)


@contextmanager
def damped(actors: Iterable[Any]) -> Iterator[None]:
    """SimplerEnv's damping while objects come to rest; the episode itself is played with
    ManiSkill's own.
    """
    bodies = [body for actor in actors for body in actor._bodies]
    before = [(body.linear_damping, body.angular_damping) for body in bodies]
    try:
        for body in bodies:
            body.linear_damping = body.angular_damping = DAMPING
        yield
    finally:
        for body, (linear, angular) in zip(bodies, before, strict=True):
            body.linear_damping = linear
            body.angular_damping = angular
