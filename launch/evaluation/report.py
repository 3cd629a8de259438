"""What `trimvla eval` shows and keeps: tables, the conclusion that the numbers allow, curves,
pictures and films.

Knows results; plays nothing but the episodes that are filmed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from trimvla.launch.console import Console
from trimvla.launch.evaluation.results import CurveRow, EvalResult
from trimvla.launch.extras import missing_module
from trimvla.launch.result import as_plain
from trimvla.sim.evaluation.latency import Latency
from trimvla.sim.evaluation.motion_pairs import MotionComparison, compare_motion
from trimvla.sim.evaluation.statistics import Comparison, compare
from trimvla.sim.evaluation.success import Success

if TYPE_CHECKING:
    from trimvla.launch.evaluation.match import Match
    from trimvla.launch.evaluation.options import Args
    from trimvla.sim.evaluation.rollout import PairedOutcomes, WorkItem

log = logging.getLogger(__name__)


def curve_rows(
    names: Mapping[str, str],
    results: Mapping[str, Mapping[str, Success]],
    latencies: Mapping[str, Mapping[str, Latency]],
    rounds: Mapping[WorkItem, PairedOutcomes],
    margin: float,
) -> list[CurveRow]:
    """One row for every bundle and latency; each bundle but the top one is compared with it,
    paired."""
    top = next(role for role in names if role != "reference")
    rows: list[CurveRow] = []
    for condition, sides in results.items():
        for role, side in sides.items():
            latency = latencies.get(condition, {}).get(role)
            played = [it[role] for (word, _), it in rounds.items() if word == condition]
            paired = compare(side.outcomes, sides[top].outcomes, margin=margin)
            steps = max(1, sum(it.steps for it in played))
            row = CurveRow(
                bundle=names[role],
                latency=condition or None,
                ms=None if latency is None else latency.mean_ms,
                success_rate=side.success_rate,
                interval=side.interval,
                successes=side.successes,
                episodes=side.episodes,
                mean_steps=side.mean_steps,
                held=sum(it.held for it in played) / steps,
                against_top=None if role == top else paired,
                outcomes="".join(map(str, side.outcomes)),
            )
            rows.append(row)
    return rows


def motion_pairs(
    match: Match, rounds: Mapping[WorkItem, PairedOutcomes], condition: str
) -> MotionComparison | None:
    """How the candidate moves against the reference; None where a run from before the motion was
    counted goes on.
    """
    played = [rounds[condition, seed] for seed in match.seeds]
    pairs = [(it["candidate"].motion, it["reference"].motion) for it in played]
    known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    if len(known) < len(pairs):
        return None
    return compare_motion([ours for ours, _ in known], [theirs for _, theirs in known])


def curve_table(rows: Sequence[CurveRow]) -> Table:
    """For people."""
    columns = ("bundle", "latency", "ms", "success", "95 %", "held")
    table = Table(*columns, title="success against latency")
    for row in rows:
        low, high = row.interval
        table.add_row(
            row.bundle,
            row.latency or "none",
            "" if row.ms is None else f"{row.ms:.0f}",
            f"{row.success_rate:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row.held:.0%}",
        )
    table.caption = "held: share of the steps without an action that was due"
    return table


def as_table(args: Args, results: Mapping[str, Success]) -> Table:
    """The card: one row a verb, and all; one column a bundle."""
    swapped = ", swapped instruction" * args.swap_instruction
    title = f"{args.names['candidate']} on {args.env} ({args.variant}{swapped})"
    roles = [role for role in ("candidate", "reference", *args.rungs) if role in results]
    sides = [results[role] for role in roles]
    heads = ["succeeded"] if len(roles) == 1 else [args.names[role] for role in roles]
    table = Table("task", *heads, "of", title=title, title_justify="left")
    for verb, (_, episodes) in sides[0].by_verb.items():
        table.add_row(verb, *(str(side.by_verb[verb][0]) for side in sides), str(episodes))
    table.add_section()
    table.add_row("all", *(str(side.successes) for side in sides), str(sides[0].episodes))
    if len(roles) > 1:
        table.add_row("rate", *(f"{side.success_rate:.3f}" for side in sides))
        table.add_row("95 %", *("{:.3f} to {:.3f}".format(*side.interval) for side in sides))
    return table


def pairs_table(args: Args, comparison: Comparison) -> Table:
    """In how many episodes who succeeded."""
    table = Table("succeeded", "episodes", title="the same episodes", title_justify="left")
    table.add_row("both", str(comparison.both))
    table.add_row(f"only {args.bundle}", str(comparison.candidate_only))
    table.add_row(f"only {args.against}, the reference", str(comparison.reference_only))
    table.add_row("neither", str(comparison.neither))
    return table


def conclusion(candidate: str, reference: str, comparison: Comparison) -> str:
    """What the numbers allow one to conclude, as a sentence."""
    low, high = comparison.interval
    margin = comparison.margin
    by = f"{100 * margin:g} points"
    if comparison.non_inferior:
        verdict = f"{candidate} is not inferior to {reference} at a margin of {by}"
    elif high < -margin:
        verdict = f"{candidate} is inferior to {reference} by more than {by}"
    else:
        verdict = (
            f"these episodes do not settle whether {candidate} is inferior to {reference} by {by}"
        )
    return (
        f"{verdict}: the difference in success rate is {100 * comparison.difference:+.1f} points, "
        f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}; "
        f"McNemar's exact p = {comparison.p_value:.3g}"
    )


def save(
    args: Args, result: EvalResult, match: Match, rounds: Mapping[WorkItem, PairedOutcomes]
) -> None:
    """Result, table, picture and films, beside the outcomes."""
    assert args.out is not None
    text = json.dumps(as_plain(result), indent=1)
    (args.out / "result.json").write_text(text + "\n")
    with (args.out / "table.txt").open("w") as file:
        console = Console(file=file, width=120)
        console.print(as_table(args, match.results(rounds)[match.conditions[0]]))
        if result.curve is not None:
            console.print(curve_table(result.curve))
    draw(result, args)
    if args.film is not None:
        film(args, match, rounds, [int(word) for word in args.film.split(",")])


def draw(result: EvalResult, args: Args) -> None:
    """`picture.png`: the curve, or the rate of every verb; without matplotlib a warning."""
    assert args.out is not None
    try:
        from trimvla.launch.evaluation.figures import draw_curve, draw_verbs
    except ModuleNotFoundError as error:
        if missing_module(error) is None:
            raise
        log.warning("no picture: %s is not installed", error.name)
        return
    path = args.out / "picture.png"
    if result.curve is not None:
        draw_curve(result.curve, path, f"success on {args.task}")
    else:
        draw_verbs(result.by_verb, path, f"{result.bundle} on {args.task}")


def film_names(roles: Sequence[str]) -> dict[str, str]:
    """Role -> the first part of its films' names: the last part of a bundle's path, numbered where
    that is taken.
    """
    names: dict[str, str] = {}
    for role in roles:
        name = base = Path(role).name
        number = 1
        while name in names.values():
            number += 1
            name = f"{base}-{number}"
        names[role] = name
    return names


def film(
    args: Args, match: Match, rounds: Mapping[WorkItem, PairedOutcomes], places: Sequence[int]
) -> None:
    """Play the chosen episodes once more, in the first condition, and film them; an outcome that
    changed is logged.
    """
    from trimvla.launch.evaluation.video import Clip, write
    from trimvla.sim.episodes import Episode
    from trimvla.sim.evaluation.rollout import run_episode

    assert args.out is not None
    condition = match.conditions[0]
    names = film_names(list(args.names))
    with closing(match.setting.make_task()) as task, match.policies() as policies:
        for place in places:
            if place >= len(match.seeds):
                log.warning("no film of episode %d: there are %d", place, len(match.seeds))
                continue
            seed = match.seeds[place]
            for role, policy in policies.items():
                images: list[np.ndarray] = []

                def keep(episode: Episode, images: list[np.ndarray] = images) -> None:
                    images.append(np.array(episode.image))

                late = match.setting.latencies.get(condition, {}).get(role)
                outcome = run_episode(policy, task, seed, match.setting, latency=late, watch=keep)
                if outcome != rounds[condition, seed][role]:
                    log.warning(
                        "seed %d of %s ended otherwise when it was filmed: %s", seed, role, outcome
                    )
                clip = Clip(images, outcome.instruction, outcome.success)
                write(args.out / f"{names[role]}-{seed}.mp4", [clip], task.control_hz)
