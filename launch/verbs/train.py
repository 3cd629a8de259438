"""`trimvla train`: demonstrations, tokenizer, behaviour cloning, loss curve, weights: everything
into one run folder.

Wires the simulator's expert to the trainer; each of them knows nothing of the other. Every step is
skipped where its result is already in the folder, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from trimvla.launch.console import Progress, progress_bar, text_column
from trimvla.launch.figures import style
from trimvla.launch.figures.losses import loss_figure
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.result import as_plain
from trimvla.launch.training.presets import TrainingPreset, find_training_preset
from trimvla.launch.training.results import RunData, RunDescription, TrainResult
from trimvla.policies.training.optimised import Data, Optimised, Trained, train
from trimvla.policies.training.state import check_same_run, origin_of, read_state
from trimvla.policies.training.trainer import Recipe
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own
from trimvla.sim.tabletop import demonstrations

SMOOTHING = 50  # steps


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


def run(args: Args) -> TrainResult:
    """Make what is missing and train; the files of the run."""
    args.check_tasks()
    args.folder.mkdir(parents=True, exist_ok=True)
    preset = args.training_preset
    cfg = preset.cfg
    origin = None if args.weights is None else origin_of(args.weights)
    state = args.folder / "state.pt"
    if state.exists():  # checked now, not after hours of demonstrations
        check_same_run(read_state(state), state, asdict(args.recipe), origin)
    with progress_bar(text_column("{task.fields[note]}"), counts=True, transient=False) as progress:
        make_demonstrations(args, progress)
        make_corrections(args, progress)
        data = preset.method.load(preset, args.folder, cfg)
        trainer = preset.method.trainer(cfg, args.recipe, data.aux.shape[-1], args.device)
        if args.weights is not None:
            trainer.start_from(preset.method.start(cfg, args.weights), origin)
        fit(trainer, data, args.folder, progress, preset.method.curves[0])
    weights = preset.method.save(trainer, data, args.folder)
    described = describe(args, trainer, len(data))
    text = json.dumps(as_plain(described), indent=1)
    (args.folder / "recipe.json").write_text(text + "\n")
    curve = draw_curve(trainer.history, args.folder / "loss.png", preset.method.curves)
    args.console().print(
        f"trained {trainer.step} steps in {trainer.seconds / 60:.0f} min: {weights}, {curve}"
    )
    return TrainResult(ok=True, file=weights, curve=curve, **msgspec.structs.asdict(described))


def make_demonstrations(args: Args, progress: Progress) -> None:
    """Write the shards that are missing."""
    task = progress.add_task("demonstrations", total=None, note="")
    make = args.training_preset.make_shards
    for frames, successes in make(
        args.folder / "demos", args.shards, args.workers, **args.restriction
    ):
        progress.update(task, advance=1, note=f"{frames} frames, {successes} successes")


def make_corrections(args: Args, progress: Progress) -> None:
    """Write the missing shards of corrections, driven by the run's exported policy,
    `<run>/actor`.
    """
    if args.corrections == 0:
        return
    task = progress.add_task("corrections", total=None, note="")
    bundle = args.folder / "actor"
    directory = args.folder / "demos"
    if not bundle.exists():
        raise ConfigError(
            f"expected the policy so far as a bundle: trimvla export {args.folder} --out {bundle}"
        )
    make = args.training_preset.make_shards
    shards = make(
        directory,
        args.corrections,
        args.workers,
        first=args.shards,
        bundle=str(bundle),
        **args.restriction,
    )
    for done, (frames, successes) in enumerate(shards, 1):
        progress.update(task, completed=done, note=f"{frames} frames, {successes} successes")


def fit(trainer: Optimised, data: Data, run: Path, progress: Progress, loss: str) -> None:
    """Train to the recipe's last step, with progress; `loss` is the one that is shown."""
    task = progress.add_task("training", total=trainer.recipe.steps, note="")

    def report(step: int, losses: dict[str, float]) -> None:
        note = f"loss {losses[loss]:.3f}, object {losses['object_cm']:.1f} cm"
        progress.update(task, completed=step, note=note)

    train(trainer, data, run, report=report)


def describe(args: Args, trainer: Trained, frames: int) -> RunDescription:
    """What is needed to train this policy again: config, recipe, seeds, data, time."""
    return RunDescription(
        preset=args.preset,
        policy=trainer.cfg.to_dict(),
        recipe=asdict(trainer.recipe),
        weights=trainer.origin,
        data=RunData(
            shards=args.shards,
            tasks=args.tasks,
            corrections=args.corrections,
            episodes_per_shard=args.training_preset.episodes_per_shard,
            first_seed=demonstrations.FIRST_SEED,
            frames=frames,
        ),
        steps=trainer.step,
        seconds=round(trainer.seconds, 1),
    )


def draw_curve(history: list[dict[str, float]], path: Path, curves: tuple[str, ...]) -> Path:
    """Some losses over the steps, smoothed, as a picture: one panel each."""
    return style.save(loss_figure(history, curves, SMOOTHING), path)
