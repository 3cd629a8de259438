"""The steps of a run: demonstrations, corrections, training, what is kept of it for people.

Each is skipped where its result is in the run's folder. Knows presets and trainers; no policy.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trimvla.launch.console import Progress
from trimvla.launch.figures import style
from trimvla.launch.figures.losses import loss_figure
from trimvla.launch.training.options import Args
from trimvla.launch.training.results import RunData, RunDescription
from trimvla.policies.training.optimised import Data, Optimised, Trained, train
from trimvla.runtime.errors import ConfigError
from trimvla.sim.tabletop import demonstrations

SMOOTHING = 50  # steps


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


def draw_curve(history: list[dict[str, float]], path: Path, curves: tuple[str, ...]) -> Path:
    """Some losses over the steps, smoothed, as a picture: one panel each."""
    return style.save(loss_figure(history, curves, SMOOTHING), path)


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
