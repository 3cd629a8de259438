"""`trimvla eval --data`: the work behind the verb, its card and its files."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING

from rich.table import Table

from trimvla.launch.console import progress_bar
from trimvla.launch.datasets.results import DataEvalResult
from trimvla.launch.extras import missing_module
from trimvla.launch.motion.table import jerk_words, motion_line
from trimvla.launch.result import as_plain
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.inference.policy import Policy

if TYPE_CHECKING:
    from trimvla.launch.evaluation.options import Args

log = logging.getLogger(__name__)
MOST_EPISODES = 20  # rows of the card


def run_over_data(args: Args) -> DataEvalResult:
    """Play the bundle over the data set; card and files. Raises ConfigError where they do not
    fit.
    """
    from trimvla.launch.datasets.evaluate import DataEval, evaluate

    assert args.data is not None
    manifest = bundles.load(bundles.resolve(args.bundle))
    wanted = DataEval(
        bundle=args.bundle,
        root=args.data,
        backend=args.backend,
        episodes=args.episodes,
        execute=args.execute,
        seed=args.seed or 0,
        views=args.view_names,
    )
    load = partial(
        Policy.load,
        args.bundle,
        backend=args.backend,
        provider=args.provider,
        threads=args.threads,
    )
    with progress_bar(counts=True) as progress:
        task = progress.add_task("episodes", total=None)
        result, played = evaluate(
            wanted,
            manifest,
            load,
            lambda done, of: progress.update(task, completed=done, total=of),
        )
    console = args.console()
    console.print(error_table(result))
    console.print(episode_table(result))
    console.print(f"motion: {motion_line(result.motion)}")
    console.print(f"recorded: {motion_line(result.recorded_motion)}")
    console.print(f"jerk: {jerk_words(result.motion)}")
    console.print(f"recorded: {jerk_words(result.recorded_motion)}")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "result.json").write_text(json.dumps(as_plain(result), indent=1) + "\n")
        try:
            from trimvla.launch.datasets.figure import draw

            draw(result, played, args.out / "picture.png")
        except ModuleNotFoundError as error:
            if missing_module(error) is None:
                raise
            log.warning("no picture: %s is not installed", error.name)
    return result


def error_table(result: DataEvalResult) -> Table:
    """One row a dimension."""
    title = f"{result.bundle} over {result.data}, {result.frames} rows"
    table = Table("dimension", "mean error", "RMS error", "RMS / spread", title=title)
    for each in result.dimensions:
        table.add_row(
            f"{each.dimension} {each.name}".strip(),
            f"{each.mean_absolute:.4g}",
            f"{each.root_mean_square:.4g}",
            "" if each.of_spread is None else f"{each.of_spread:.2f}",
        )
    table.caption = "spread: standard deviation of the recorded actions"
    return table


def episode_table(result: DataEvalResult) -> Table:
    """One row an episode, the first ones."""
    table = Table("episode", "task", "rows", "RMS / spread", "gripper", "jerk / recorded")
    for each in result.episodes[:MOST_EPISODES]:
        table.add_row(
            str(each.episode),
            each.task,
            str(each.frames),
            "" if each.of_spread is None else f"{each.of_spread:.2f}",
            "" if each.gripper_agreement is None else f"{each.gripper_agreement:.0%}",
            "" if each.jerk_ratio is None else f"{each.jerk_ratio:.2f}",
        )
    if len(result.episodes) > MOST_EPISODES:
        table.caption = f"and {len(result.episodes) - MOST_EPISODES} more"
    return table
