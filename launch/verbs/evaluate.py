"""`trimvla eval`: how often does a bundle succeed in simulation?

Rate, interval and the outcome of every seed.

With `--against` a second bundle, the reference, plays the same seeds in turn, and the two are
compared; with `--rungs` several do, as a ladder. With `--latency` the time that a policy takes to
think is charged to the simulated clock.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from trimvla.launch.console import progress_bar, text_column
from trimvla.launch.evaluation.env_args import check_fits, check_look, looks_around
from trimvla.launch.evaluation.options import CANDIDATE, REFERENCE, Args, Match
from trimvla.launch.evaluation.policies import Bundles, check_same_task, estimate, resolve_latency
from trimvla.launch.evaluation.report import (
    as_table,
    conclusion,
    curve_rows,
    curve_table,
    motion_pairs,
    pairs_table,
    save,
)
from trimvla.launch.evaluation.results import BundleResult, Estimate, EvalResult
from trimvla.launch.motion.table import motion_table
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.policies.sizes.roofline import DEVICES
from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.sim.actor import EXPERT
from trimvla.sim.evaluation.latency import Latency, split
from trimvla.sim.evaluation.motion_pairs import motion_words
from trimvla.sim.evaluation.statistics import compare
from trimvla.sim.evaluation.success import Success

if TYPE_CHECKING:
    from trimvla.sim.evaluation.rollout import PairedOutcomes, WorkItem


def run(args: Args) -> EvalResult:
    """Play the episodes with a progress bar; the candidate's success in the first condition.

    With a reference also its own success and the comparison; with several bundles or latencies a
    curve, one row for each of both.
    """
    terminate_as_interrupt()
    check_same_task(list(args.names.values()))
    match = prepare(args)
    rounds = play(args, match)
    results = match.results(rounds)
    result = result_of(args, match, rounds, results)
    show(args, result, results[match.conditions[0]])
    if args.out is not None:
        save(args, result, match, rounds)
    return result


def result_of(
    args: Args,
    match: Match,
    rounds: Mapping[WorkItem, PairedOutcomes],
    results: Mapping[str, Mapping[str, Success]],
) -> EvalResult:
    """The result: what was requested, and what came of it."""
    first = results[match.conditions[0]]
    played = {
        "seed": match.seeds[0],
        "variant": args.variant,
        "swap_instruction": args.swap_instruction,
        "execute": match.setting.pace.execute,
    }
    result = EvalResult(
        ok=True,
        bundle=args.names[CANDIDATE],
        env=args.env,
        backend=args.backend,
        **structs.asdict(first[CANDIDATE]),
        **played,
    )
    if args.against is not None:
        reference = first[REFERENCE]
        result = structs.replace(
            result, motion_comparison=motion_pairs(match, rounds, match.conditions[0])
        )
        result = structs.replace(
            result,
            against=BundleResult(bundle=args.against, **structs.asdict(reference), **played),
            comparison=compare(first[CANDIDATE].outcomes, reference.outcomes, margin=args.margin),
        )
    if args.latency is not None or args.rungs:
        latencies = match.setting.latencies
        result = structs.replace(
            result,
            curve=curve_rows(args.names, results, latencies, rounds, args.margin),
            estimates=estimates(args),
            control_hz=match.control_hz,
            chunks=args.chunks,
        )
    return result


def show(args: Args, result: EvalResult, first: Mapping[str, Success]) -> None:
    """Print the card."""
    console = args.console()
    console.print(as_table(args, first))
    if result.curve is not None:
        console.print(curve_table(result.curve))
    if result.motion is not None:
        console.print(motion_table(result.motion, f"how {result.bundle} moves"))
    if args.against is None or result.comparison is None:
        low, high = result.interval
        interval = f"95 % interval {low:.3f} to {high:.3f}"
        console.print(f"success rate {result.success_rate:.3f}, {interval}")
        return
    console.print(pairs_table(args, result.comparison))
    console.print(conclusion(args.bundle, args.against, result.comparison))
    if result.motion_comparison is not None:
        console.print(motion_words(args.bundle, args.against, result.motion_comparison))
    if args.swap_instruction:
        words = "success is judged by the original goal"
        console.print(f"{words}: with the instruction swapped, low rates are good")


def estimates(args: Args) -> list[Estimate]:
    """Where the latencies of devices come from."""
    words = [word.partition(":") for word in split(args.latency or "")]
    devices = [(device, share) for device, _, share in words if device in DEVICES]
    return [
        estimate(name, device, float(share or 1))
        for device, share in devices
        for name in args.names.values()
    ]


def prepare(args: Args) -> Match:
    """What the arguments mean for this environment."""
    from trimvla.sim.episodes import make_task
    from trimvla.sim.evaluation.rollout import Setting, check_episodes, check_expert, choose_seeds
    from trimvla.sim.evaluation.success import WAITS
    from trimvla.sim.evaluation.virtual_time import Pace

    options = args.env_options([args.bundle])
    with closing(make_task(args.task, options)) as task:
        check_fits(task, args.names.values())
        official, seeds = choose_seeds(task.official, args.episodes, args.seed, usual=200)
        check_episodes(task, seeds, official=official)
        named = args.names.values()
        looked = [it for it in named if options.instruction is not None or looks_around(it)]
        if looked:
            check_look(task, looked, seeds[0], official=official)
        expert = args.policy == EXPERT
        hz = task.control_hz
        pace = Pace(
            execute=args.execute or (1 if expert else getattr(task, "execute", 2)),
            votes=args.votes or getattr(task, "votes", 2),
            valid_rows=args.valid_rows,
            mode="latest" if args.chunks == "rtc" else args.chunks,
            rtc=RtcConfig(enabled=args.chunks == "rtc"),
        )
    policies = Bundles(
        args.names, args.backend, args.threads, args.provider, guided=pace.rtc.enabled
    )
    words = tuple(dict.fromkeys(split(args.latency or "")))
    setting = Setting(args.task, official, pace, options=options)
    latencies = known_latencies(args, words) or {
        w: resolve_latency(w, args.names, policies, setting) for w in words
    }
    setting = replace(setting, latencies=latencies)
    check_expert(args.names.values(), setting)
    return Match(policies, setting, words or (WAITS,), seeds, hz)


def known_latencies(args: Args, words: Sequence[str]) -> dict[str, dict[str, Latency]]:
    """Of a run that goes on: what was measured for it once holds for all of it."""
    from trimvla.sim.evaluation.outcomes import read_header

    header = read_header(args.out / "outcomes.jsonl") if args.out is not None else None
    stored = (header or {}).get("latencies", {})
    if set(stored) != set(words) or any(set(roles) != set(args.names) for roles in stored.values()):
        return {}
    return {
        word: {
            role: Latency(it["name"], it["kind"], tuple(it["values"])) for role, it in roles.items()
        }
        for word, roles in stored.items()
    }


def play(args: Args, match: Match) -> dict[WorkItem, PairedOutcomes]:
    """(condition, seed) -> round; behind a progress bar, and from where a killed run stopped."""
    from trimvla.sim.evaluation.outcomes import OutcomeLog

    path = None if args.out is None else args.out / "outcomes.jsonl"
    log = nullcontext(None) if path is None else OutcomeLog(path, match.header(), list(args.names))
    with (
        log as kept,
        progress_bar(text_column("{task.fields[won]} succeeded"), counts=True) as progress,
    ):
        rounds = (
            {}
            if kept is None
            else {item: kept.rounds[item] for item in match.items if item in kept.rounds}
        )
        left = [item for item in match.items if item not in rounds]
        won = {
            role: sum(it[role].success for it in rounds.values()) for role in reversed(args.names)
        }
        task = progress.add_task("episodes", total=len(match.items), completed=len(rounds), won="0")
        with closing(start(args, match, left)) as coming:
            for played in coming:
                first = next(iter(played.values()))
                rounds[first.latency, first.seed] = played
                if kept is not None:
                    kept.add(played)
                won = {role: count + played[role].success for role, count in won.items()}
                progress.update(task, advance=1, won=" against ".join(map(str, won.values())))
    return rounds


def start(
    args: Args, match: Match, left: Sequence[WorkItem]
) -> Generator[PairedOutcomes, None, None]:
    """What is left to be played, as it comes: from processes of this machine, or from a cluster."""
    from trimvla.sim.evaluation.rollout import play_all

    if not left:
        return
    if args.ray is None:
        yield from play_all(
            match.policies, match.setting, left, args.workers or len(os.sched_getaffinity(0))
        )
        return
    from trimvla.sim.evaluation.ray_workers import over_cluster

    yield from play_all(
        match.policies, match.setting, left, args.workers or 0, over_cluster(args.ray)
    )
