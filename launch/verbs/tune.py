"""`trimvla tune`: from a dense bundle and a budget to bundles on this device's front of time and
success.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from trimvla.launch.console import progress_bar
from trimvla.launch.evaluation.env_args import check_fits
from trimvla.launch.exporting.policy_source import check_planner, load_policy
from trimvla.launch.result import as_plain
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.launch.tuning.frames import frames_of
from trimvla.launch.tuning.options import TuneArgs as Args
from trimvla.launch.tuning.prices import fit
from trimvla.launch.tuning.report import (
    as_table,
    check_prices,
    distance_correlation,
    points_of,
    write_system,
)
from trimvla.launch.tuning.results import TuneResult
from trimvla.launch.tuning.work import (
    DENSE,
    Clock,
    Job,
    candidates_of,
    choose,
    export_chosen,
    measure_device,
    plans_of,
    play_chosen,
    take_times,
)
from trimvla.policies.cogact.model import CogAct
from trimvla.runtime.bundle import manifest as bundles
from trimvla.sim.episodes import make_task
from trimvla.sim.evaluation.rollout import Setting, check_episodes, choose_seeds
from trimvla.sim.evaluation.virtual_time import Pace


def run(args: Args) -> TuneResult:
    """Search, export, time, play, write; the table for people."""
    terminate_as_interrupt()
    dense = bundles.resolve(args.bundle)
    check_planner(dense)
    episodes = find_episodes(args)
    policy = load_policy(dense, None)
    assert isinstance(policy, CogAct)  # what families that calibrate build
    args.out.mkdir(parents=True, exist_ok=True)
    with progress_bar(counts=True, transient=False) as progress:
        clock = Clock()
        job = Job(args, dense, policy, frames_of(args, dense, policy, progress), progress, clock)
        plans = plans_of(job)
        measured = measure_device(job, plans)
        found = candidates_of(job, plans, fit(measured))
        choice = choose(job, found, plans)
        made = export_chosen(job, plans, choice)
        with clock.part("times"):
            times = take_times(job, made, "turns at the clock")
        played = {} if episodes is None else play_chosen(job, made, *episodes)
    candidates = {one.point.name: one for one in choice.candidates} | {DENSE: choice.dense}
    points = points_of(made, candidates, choice.meets, times, played, margin=args.margin)
    result = TuneResult(
        ok=True,
        points=points,
        candidates=len(found),
        prices=check_prices(measured, points),
        distance_rank_correlation=distance_correlation(points),
        minutes=clock.minutes,
        system=write_system(points, args.out / "system.toml"),
    )
    save(result, args.out)
    args.console().print(as_table(points))
    return result


def find_episodes(args: Args) -> tuple[Setting, range] | None:
    """What is played, if anything; ConfigError where there are not so many episodes."""
    if args.env is None:
        return None
    options = args.env_options([args.bundle])
    with closing(make_task(args.env, options)) as task:
        check_fits(task, [args.bundle])
        official, seeds = choose_seeds(task.official, args.episodes, args.seed, usual=args.episodes)
        check_episodes(task, seeds, official=official)
    return Setting(args.env, official, Pace(execute=args.execute), options=options), seeds


def save(result: TuneResult, out: Path) -> None:
    """The front as JSON and, where something was played, as a picture."""
    (out / "front.json").write_text(json.dumps(as_plain(result), indent=1) + "\n")
    if any(point.success is not None for point in result.points):
        from trimvla.launch.figures.tradeoff import draw_tradeoff

        rows = [
            {**as_plain(point), "ms": point.timing.p50_ms, "control": False}
            for point in result.points
        ]
        draw_tradeoff(rows, out / "front.png")
