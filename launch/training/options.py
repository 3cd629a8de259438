"""The options of `trimvla train`. Trains nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.training.presets import TrainingPreset, find_training_preset
from trimvla.policies.training.trainer import Recipe
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own


@dataclass(frozen=True)
class Args(Options):
    """Train a shipped policy from scripted demonstrations.

    Stop it at any time; the same command goes on.
    """

    preset: str = "tabletop"
    """What is trained: tabletop, a policy of CogACT's shape; tabletop-flow, one of pi0's shape with
    front and wrist cameras and the robot's state; tabletop-flow-front, the same with the front
    camera alone; widowx, for SimplerEnv's WidowX tasks (extra `simpler`), which sees the whole
    image; widowx-window, which sees a window of it, finer; or module:attribute, a TrainingPreset
    of your own (docs/guides/own-training-preset.md)."""

    run: Path | None = None
    """Folder of the run: demonstrations, state, weights, loss curve; runs/ and the preset's name
    (of your own: its attribute's) when left out.
    """

    shards: int = 44
    """Shards of demonstrations: 100 episodes each; for WidowX 10 of every task."""

    tasks: tuple[str, ...] = ()
    """Demonstrations of these WidowX tasks only (default: of all four)."""

    corrections: int = 0
    """Further shards in which the policy trained so far drives and the expert labels; then raise
    --steps too.
    """

    steps: int | None = None
    """Optimiser steps; by default as many as in the preset's recipe."""

    pictures: int | None = None
    """Pictures of a step; by default as many as in the preset's recipe."""

    learning_rate: float | None = None
    """Of the optimiser, at its highest; the preset's when left out."""

    device: str = "cpu"
    """Where it is trained, in torch's words: cpu, cuda, cuda:1."""

    weights: Path | None = None
    """Start from these weights (safetensors) where the run has no state yet."""

    workers: int = os.cpu_count() or 1
    """Processes that make demonstrations."""

    seed: int = Recipe.seed
    """Of the weights and of everything that training draws."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        given = {name: getattr(self, name) for name in ("shards", "steps", "pictures", "workers")}
        wrong = [f"--{name}" for name, value in given.items() if value is not None and value < 1]
        if wrong:
            raise ConfigError(f"expected at least 1 for {', '.join(wrong)}")
        if not is_own(self.preset):  # what is somebody's own is imported when it is needed
            self.check_tasks()
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise ConfigError(f"expected 0 < --learning-rate < 1, got {self.learning_rate:g}")
        check_device(self.device)

    def check_tasks(self) -> None:
        """Raise ConfigError where there is no such preset, or it has no such task."""
        if unknown := sorted(set(self.tasks) - set(self.training_preset.tasks)):
            known = sorted(self.training_preset.tasks) or "none"
            raise ConfigError(
                f"expected --tasks out of {known} for --preset {self.preset}, got {unknown}"
            )

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--run", self.folder, folder=True),)

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.run or Path("runs") / self.preset.rpartition(":")[2]

    @property
    def restriction(self) -> dict[str, tuple[str, ...]]:
        """What `make_shards` receives beyond numbers."""
        return {"names": self.tasks} if self.tasks else {}

    @property
    def training_preset(self) -> TrainingPreset:
        """What the preset trains, and how; ConfigError where there is none of this name."""
        return find_training_preset(self.preset)

    @property
    def recipe(self) -> Any:  # noqa: ANN401
        """The preset's, with what was given."""
        recipe = self.training_preset.recipe
        return replace(
            recipe,
            steps=self.steps or recipe.steps,
            pictures=self.pictures or recipe.pictures,
            learning_rate=self.learning_rate or recipe.learning_rate,
            seed=self.seed,
        )


def check_device(device: str) -> None:
    """Raise ConfigError where torch has no such device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"expected a device that torch has for --device, got {device!r}: {reason}"
        ) from None
