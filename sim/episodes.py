"""What an evaluation needs of any environment: tasks that give episodes, episodes that take a
policy's actions.

A task keeps what is slow to make (a renderer, a physics scene) and is not shared between processes;
every episode starts from a state that its index alone decides, whatever was played before. Knows
the names of the environments and where they are made; knows no policy and no statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import parse_reference
from trimvla.sim.own.options import EnvOptions


class Episode(Protocol):
    """One episode in progress; its task plays one at a time."""

    @property
    def image(self) -> np.ndarray:
        """uint8[h, w, 3] RGB, what the policy's camera sees now."""
        ...

    @property
    def instruction(self) -> str:
        """What is asked now; read it before every step, as it may change with the sub-task."""
        ...

    @property
    def success(self) -> bool:
        """The official score as of the last step (not "at any step")."""
        ...

    def step(self, action: np.ndarray) -> bool:
        """Execute one action for one control period; True when the episode is over.

        Args:
            action: float[dim], un-normalised. Of our own tasks: delta xyz [m], delta roll, pitch,
                yaw [rad], gripper (1 = open, 0 = close).
        """
        ...

    def expert(self) -> np.ndarray:
        """float32[dim]: what the scripted expert, which sees the privileged state and has no
        memory, would do now.

        Raises:
            ConfigError: this environment has no expert.
        """
        ...

    def close(self) -> None:
        """Free what belongs to this episode alone; the task stays usable."""
        ...


class Task(Protocol):
    """A source of episodes."""

    @property
    def name(self) -> str:
        """As given to `make_task`."""
        ...

    @property
    def control_hz(self) -> float:
        """Steps per second of the robot."""
        ...

    @property
    def dim(self) -> int:
        """Numbers of an action."""
        ...

    @property
    def kinds(self) -> tuple[ActionKind, ...] | None:
        """What each of them means; None where it is unknown, and then the bundle's hold."""
        ...

    @property
    def limit(self) -> int:
        """The most steps of an episode."""
        ...

    @property
    def official(self) -> int:
        """Episodes of the official grid; 0 where there is none."""
        ...

    def episode(self, index: int, *, official: bool) -> Episode:
        """Start an episode: of the official grid (index < `official`), or from a state drawn with
        `index` as seed.
        """
        ...

    def close(self) -> None:
        """Free everything."""
        ...


GYMNASIUM = "gymnasium"
MAKERS = {  # what a task's name begins with -> module and function that take the rest of the name
    "tabletop": ("trimvla.sim.tabletop.task", "make"),
    "simpler": ("trimvla.sim.simpler.env", "make"),
    "simpler_env": ("trimvla.sim.simpler.original", "make"),
}


def make_task(name: str, options: EnvOptions | None = None) -> Task:
    """The task of this name: `tabletop`, `tabletop:lighting` (any variant),
    `simpler:widowx_stack_cube`, ...

    `simpler_env:google_robot_move_near` is the original SimplerEnv package, which alone has the
    Google robot's tasks. `gymnasium:ID` is an environment registered there, `module:attribute` a
    function of the user's own.

    Args:
        name: the task.
        options: what an environment of the last two kinds does not define itself.

    Raises:
        ConfigError: no such task, or something that it needs is not installed.

    Example:
        >>> from trimvla.sim import make_task
        >>> task = make_task("tabletop")
        >>> episode = task.episode(1000, official=False)
        >>> episode.image.dtype, episode.instruction
        (dtype('uint8'), 'put the green can on the blue plate')
        >>> episode.step(episode.expert())
        False
        >>> episode.close()
        >>> task.close()
    """
    options = options or EnvOptions()
    family, _, rest = name.partition(":")
    if family not in MAKERS:
        return _make_foreign(name, rest, options)
    if given := options.given():
        raise ConfigError(
            f"expected no {', '.join(given)} for {family!r}: it says all of that itself"
        )
    module, function = MAKERS[family]
    make: Callable[[str], Task] = getattr(import_module(module), function)
    return make(rest)


def _make_foreign(name: str, rest: str, options: EnvOptions) -> Task:
    """A task that is not ours."""
    reference = parse_reference(name)
    is_registered = name.startswith(f"{GYMNASIUM}:") and bool(rest)
    if not is_registered and reference is None:
        own = f"{GYMNASIUM}:ID, or module:attribute of your own"
        raise ConfigError(
            f"expected an environment that begins with one of {sorted(MAKERS)}, {own}, got {name!r}"
        )
    from trimvla.sim.own.make import make_own, make_registered

    if is_registered:
        return make_registered(rest, options)
    assert reference is not None
    return make_own(reference, options)
