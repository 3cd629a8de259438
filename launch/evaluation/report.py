"""What `trimvla eval` shows and keeps: tables, the sentence that the numbers allow, curves,
pictures and films.

Knows results; plays nothing but the episodes that are filmed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from trimvla.launch.console import Console
from trimvla.launch.extras import missing_module
from trimvla.launch.options import Result
from trimvla.sim.evaluation.latency import Latency
from trimvla.sim.evaluation.statistics import compare

if TYPE_CHECKING:
    from trimvla.launch.evaluation.options import Args, Match
    from trimvla.sim.evaluation.rollout import Deal, Round

log = logging.getLogger(__name__)


def curve_rows(
    names: Mapping[str, str],
    results: Mapping[str, Mapping[str, Result]],
    latencies: Mapping[str, Mapping[str, Latency]],
    rounds: Mapping[Deal, Round],
    margin: float,
) -> list[Result]:
    """One row for every bundle and latency; each bundle but the top of the ladder is compared with
    it, paired.
    """
    top = next(role for role in names if role != "reference")
    rows = []
    for condition, sides in results.items():
        for role, side in sides.items():
            latency = latencies.get(condition, {}).get(role)
            played = [it[role] for (word, _), it in rounds.items() if word == condition]
            paired = compare(side["outcomes"], sides[top]["outcomes"], margin=margin)
            rows.append(
                {
                    "bundle": names[role],
                    "latency": condition or None,
                    "ms": None if latency is None else latency.mean_ms,
                    **{
                        key: side[key]
                        for key in (
                            "success_rate",
                            "interval",
                            "successes",
                            "episodes",
                            "mean_steps",
                        )
                    },
                    "held": sum(it.held for it in played) / max(1, sum(it.steps for it in played)),
                    "against_top": None if role == top else asdict(paired),
                    "outcomes": "".join(map(str, side["outcomes"])),
                }
            )
    return rows


def curve_table(rows: Sequence[Result]) -> Table:
    """For people."""
    table = Table(
        "bundle", "latency", "ms", "success", "95 %", "held", title="success against latency"
    )
    for row in rows:
        ms = "" if row["ms"] is None else f"{row['ms']:.0f}"
        rate = f"{row['success_rate']:.3f}"
        (low, high) = row["interval"]
        interval = f"{low:.3f} to {high:.3f}"
        table.add_row(
            row["bundle"], row["latency"] or "none", ms, rate, interval, f"{row['held']:.0%}"
        )
    table.caption = "held: share of the steps without an action that was due"
    return table


def as_table(args: Args, results: Mapping[str, Result]) -> Table:
    """The card: one row a verb, and all; one column a bundle."""
    title = (
        f"{args.names['candidate']} on {args.env}"
        f" ({args.variant}{', swapped instruction' * args.swap_instruction})"
    )
    roles = [role for role in ("candidate", "reference", *args.rungs) if role in results]
    sides = [results[role] for role in roles]
    heads = ["succeeded"] if len(roles) == 1 else [args.names[role] for role in roles]
    table = Table("task", *heads, "of", title=title, title_justify="left")
    for verb, (_, episodes) in sides[0]["by_verb"].items():
        table.add_row(verb, *(str(side["by_verb"][verb][0]) for side in sides), str(episodes))
    table.add_section()
    table.add_row("all", *(str(side["successes"]) for side in sides), str(sides[0]["episodes"]))
    if len(roles) > 1:
        table.add_row("rate", *(f"{side['success_rate']:.3f}" for side in sides))
        table.add_row("95 %", *("{:.3f} to {:.3f}".format(*side["interval"]) for side in sides))
    return table


def pairs_table(args: Args, comparison: Result) -> Table:
    """In how many episodes who succeeded."""
    table = Table("succeeded", "episodes", title="the same episodes", title_justify="left")
    rows = (
        ("both", "both"),
        (f"only {args.bundle}", "candidate_only"),
        (f"only {args.against}, the reference", "reference_only"),
        ("neither", "neither"),
    )
    for label, key in rows:
        table.add_row(label, str(comparison[key]))
    return table


def sentence(candidate: str, reference: str, comparison: Result) -> str:
    """What the numbers allow one to say."""
    (low, high) = comparison["interval"]
    margin = comparison["margin"]
    points = f"{100 * margin:g} points"
    if comparison["non_inferior"]:
        verdict = f"{candidate} is not inferior to {reference} at a margin of {points}"
    elif high < -margin:
        verdict = f"{candidate} is inferior to {reference} by more than {points}"
    else:
        verdict = (
            f"these episodes do not settle whether {candidate} is inferior to {reference} by"
            f" {points}"
        )
    return (
        f"{verdict}: the difference in success rate is {100 * comparison['difference']:+.1f}"
        f" points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}; McNemar's exact p ="
        f" {comparison['p_value']:.3g}"
    )


def save(args: Args, told: Result, match: Match, rounds: Mapping[Deal, Round]) -> None:
    """Result, table, picture and films, beside the outcomes."""
    assert args.out is not None
    (args.out / "result.json").write_text(json.dumps(told, indent=1, default=str) + "\n")
    with (args.out / "table.txt").open("w") as file:
        console = Console(file=file, width=120)
        console.print(as_table(args, match.results(rounds)[match.conditions[0]]))
        if "curve" in told:
            console.print(curve_table(told["curve"]))
    draw(told, args)
    if args.film is not None:
        film(args, match, rounds, [int(word) for word in args.film.split(",")])


def draw(told: Result, args: Args) -> None:
    """`picture.png`: the curve, or the rate of every verb; without matplotlib a line says so."""
    assert args.out is not None
    try:
        from trimvla.launch.evaluation.figures import draw_curve, draw_verbs
    except ModuleNotFoundError as error:
        if missing_module(error) is None:
            raise
        log.warning("no picture: %s is not installed", error.name)
        return
    if "curve" in told:
        draw_curve(told["curve"], args.out / "picture.png", f"success on {args.task}")
    else:
        draw_verbs(told["by_verb"], args.out / "picture.png", f"{told['bundle']} on {args.task}")


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


def film(args: Args, match: Match, rounds: Mapping[Deal, Round], places: Sequence[int]) -> None:
    """Play the chosen episodes once more, in the first condition, and film them; an outcome that
    changed is told.
    """
    from trimvla.launch.evaluation.video import Clip, write
    from trimvla.sim.episodes import Episode
    from trimvla.sim.evaluation.rollout import run_episode

    assert args.out is not None
    condition = match.conditions[0]
    names = film_names(list(args.names))
    with closing(match.setting.make_task()) as task, match.players() as players:
        for place in places:
            if place >= len(match.seeds):
                log.warning("no film of episode %d: there are %d", place, len(match.seeds))
                continue
            seed = match.seeds[place]
            for role, player in players.items():
                pictures: list[np.ndarray] = []

                def keep(episode: Episode, pictures: list[np.ndarray] = pictures) -> None:
                    pictures.append(np.array(episode.image))

                late = match.setting.latencies.get(condition, {}).get(role)
                outcome = run_episode(player, task, seed, match.setting, latency=late, watch=keep)
                if outcome != rounds[condition, seed][role]:
                    log.warning(
                        "seed %d of %s ended otherwise when it was filmed: %s", seed, role, outcome
                    )
                clip = Clip(pictures, outcome.instruction, outcome.success)
                write(args.out / f"{names[role]}-{seed}.mp4", [clip], task.control_hz)
