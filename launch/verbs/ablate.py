"""`trimvla ablate`: every part of a plan by itself and together, and the controls: success, time
and cost in one table.

Makes a plan and a bundle for every row (`export.ablation`), lets all of them take turns at the
clock and play the same episodes, and writes JSON, table and picture (`ablate_report`). Bundles and
outcomes are kept in the work folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from trimvla.launch import tables
from trimvla.launch.ablation.bundles import Origin, calibrate, make_bundles, weights_digest
from trimvla.launch.ablation.options import AblateArgs as Args
from trimvla.launch.ablation.play import play
from trimvla.launch.ablation.report import NAME, as_markdown, as_table, summarise, with_times
from trimvla.launch.ablation.results import AblationResult
from trimvla.launch.ablation.rows import MAIN
from trimvla.launch.ablation.times import take_times
from trimvla.launch.console import Progress, progress_bar
from trimvla.launch.evaluation.env_args import check_fits
from trimvla.launch.exporting.policy_source import check_planner
from trimvla.launch.result import as_plain
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.sim.episodes import make_task
from trimvla.sim.evaluation.rollout import Setting, check_episodes, choose_seeds
from trimvla.sim.evaluation.success import Outcome
from trimvla.sim.evaluation.virtual_time import Pace


def run(args: Args) -> AblationResult:
    """Export, time, play, write; the table for people."""
    terminate_as_interrupt()
    if args.page is not None:
        read_text(args.page, "")
    dense = bundles.resolve(args.bundle)
    check_planner(dense)
    setting, seeds = find_episodes(args)
    work = args.work / f"{weights_digest(dense)[:12]}{args.suffix}"
    with progress_bar(counts=True, transient=False) as progress:
        origin = Origin(dense, calibrate(args, dense, progress), work)
        made = make_bundles(args, origin, progress)
        samples, subjects = take_times(args, made, progress)
        played = play_all(args, made, setting, seeds, work=work, progress=progress)
    left_out = ("json", "work", "out")
    result = AblationResult(
        ok=True,
        rows=summarise(made, subjects, samples, played, args.margin),
        settings={name: value for name, value in asdict(args).items() if name not in left_out},
    )
    save(result, args)
    args.console().print(as_table(result.rows))
    return result


def save(result: AblationResult, args: Args) -> None:
    """JSON, picture, and the table in the text that is named."""
    from trimvla.launch.figures.tradeoff import draw_tradeoff

    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_plain(result), indent=1)
    (args.out / f"ablation{args.suffix}.json").write_text(text + "\n")
    draw_tradeoff(with_times(result.rows), args.out / f"ablation{args.suffix}.png")
    if args.page is not None:
        args.page.write_text(read_text(args.page, as_markdown(result.rows)))


def read_text(path: Path, table: str) -> str:
    """The text with this table between its marks. Raises ConfigError where it is no such text."""
    try:
        return tables.insert(path.read_text(), NAME, table)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a text for --page, got: {error}") from None


def find_episodes(args: Args) -> tuple[Setting, range]:
    """What is played.

    Raises ConfigError where there is no such task or there are not so many episodes.
    """
    options = args.env_options([args.bundle])
    with closing(make_task(args.env, options)) as task:
        check_fits(task, [args.bundle])
        official, seeds = choose_seeds(task.official, args.episodes, args.seed, usual=300)
        check_episodes(task, seeds, official=official)
    return Setting(args.env, official, Pace(execute=args.execute), options=options), seeds


def play_all(
    args: Args,
    made: Mapping[str, Path],
    setting: Setting,
    seeds: range,
    *,
    work: Path,
    progress: Progress,
) -> dict[str, list[Outcome]]:
    """Row -> its outcomes by rising seed; the dense bundle and the whole plan play the most
    seeds.
    """
    played: dict[str, list[Outcome]] = {}
    for is_main, count in ((True, len(seeds)), (False, min(args.others, len(seeds)))):
        rows = {name: path for name, path in made.items() if (name in MAIN) == is_main}
        if rows:
            played |= play(
                rows, setting, seeds[:count], workers=args.workers, work=work, progress=progress
            )
    return {name: played[name] for name in made}
