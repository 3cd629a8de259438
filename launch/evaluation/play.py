"""The episodes of a match, played: here or on a cluster, and from where a killed run stopped.

Knows processes, a log of outcomes and a progress bar; not what an episode is.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from trimvla.launch.console import progress_bar, text_column
from trimvla.launch.evaluation.match import Match
from trimvla.launch.evaluation.options import Args

if TYPE_CHECKING:
    from trimvla.sim.evaluation.rollout import PairedOutcomes, WorkItem


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
