"""`trimvla train`: demonstrations, tokenizer, behaviour cloning, loss curve, weights: everything
into one run folder.

Wires the simulator's expert to the trainer; each of them knows nothing of the other. Every step is
skipped where its result is already in the folder, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import msgspec

from trimvla.launch.console import progress_bar, text_column
from trimvla.launch.result import as_plain
from trimvla.launch.training.options import Args
from trimvla.launch.training.results import TrainResult
from trimvla.launch.training.steps import (
    describe,
    draw_curve,
    fit,
    make_corrections,
    make_demonstrations,
)
from trimvla.policies.training.state import check_same_run, origin_of, read_state


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
