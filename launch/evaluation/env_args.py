"""What a person adds about an own environment, in every verb that plays one, and what must fit.

Knows options, tasks and manifests; plays nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimvla.launch.options import Options
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_meaning import (
    ActionMeaning,
    describe,
    disagreement,
    meaning_of,
)
from trimvla.runtime.errors import ConfigError, ObservationError, PromptError
from trimvla.runtime.inference.policy import open_inputs
from trimvla.sim.actor import EXPERT, observe_for
from trimvla.sim.own.options import EnvOptions

if TYPE_CHECKING:
    from trimvla.sim.episodes import Task


@dataclass(frozen=True, kw_only=True)
class EnvArgs(Options):
    """Of an environment of one's own, `module:attribute` or `gymnasium:ID`; ours need none."""

    camera: str | None = None
    """Own environments: the observation's key with the image (a.b for an inner key), or
    render. Default: the only image that there is, else what render() returns."""

    instruction: str | None = None
    """Own environments: the instruction, where the environment has none."""

    success_reward: float | None = None
    """Own environments: an episode that is terminated with at least this reward has succeeded.
    Default: info["success"] or info["is_success"]."""

    max_steps: int | None = None
    """Own environments: steps after which an episode is over. Default: as registered, or
    1000."""

    def env_options(self, bundles_named: Iterable[str] = ()) -> EnvOptions:
        """The same for `make_task`, with the control rate of the first bundle, if any."""
        named = [name for name in bundles_named if name != EXPERT]
        rate = bundles.load(bundles.resolve(named[0])).action.control_hz if named else None
        return EnvOptions(
            camera=self.camera,
            instruction=self.instruction,
            success_reward=self.success_reward,
            max_steps=self.max_steps,
            control_hz=rate,
        )


def check_fits(task: Task, names: Iterable[str]) -> None:
    """Raise ConfigError for a bundle whose actions are not those of the task.

    Their number always counts; their kinds, where the task defines them; the rate of deltas.
    """
    for name in names:
        if name == EXPERT:
            continue
        got = meaning_of(bundles.load(bundles.resolve(name)).action)
        if len(got.kinds) != task.dim:
            words = f"actions of {task.dim} numbers for '{task.name}'"
            found = f"{len(got.kinds)} of bundle '{name}': {describe(got.kinds)}"
            raise ConfigError(f"expected {words}, got {found}")
        kinds = got.kinds if task.kinds is None else task.kinds
        if problem := disagreement(ActionMeaning(kinds, task.control_hz), got):
            raise ConfigError(f"'{task.name}': {problem} of '{name}'")


def looks_around(name: str) -> bool:
    """Whether a bundle reads more than the one image that every environment has."""
    if name == EXPERT:
        return False
    manifest = bundles.load(bundles.resolve(name), verify_hashes=False)
    return manifest.state is not None or len(manifest.images.names) > 1


def check_look(task: Task, names: Iterable[str], seed: int, *, official: bool) -> None:
    """Whether bundles can read what a task shows: its cameras, state and instruction, of one
    episode.

    Raises:
        ConfigError: a camera or a state that it does not have, or that does not fit; names both.
    """
    with closing(task.episode(seed, official=official)) as episode:
        for name in names:
            if name == EXPERT:
                continue
            manifest = bundles.load(bundles.resolve(name), verify_hashes=False)
            try:
                open_inputs(name).tensors(observe_for(episode, manifest))
            except (ObservationError, PromptError) as error:
                raise ConfigError(f"'{task.name}' and bundle '{name}': {error}") from None


def check_task(name: str, options: EnvOptions, names: Iterable[str]) -> None:
    """Make the task and compare it with bundles; raises ConfigError."""
    from trimvla.sim.episodes import make_task

    with closing(make_task(name, options)) as task:
        check_fits(task, names)
