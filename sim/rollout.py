"""Episodes of one or several policies on the tabletop, in simulated time: outcomes, success rates, intervals.

Every episode is fixed by its seed: the table, the goal and the policy's noise. Several policies play each seed in turn,
so that their outcomes are pairs wherever a run is stopped. The simulator waits while a policy thinks. Knows the
environment and anything that infers; knows no backend and no socket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from trimvla.runtime.chunks import AdaptiveEnsemble
from trimvla.sim.actor import Actor
from trimvla.sim.demonstrations import FIRST_SEED
from trimvla.sim.statistics import wilson_interval
from trimvla.sim.tabletop import MAX_STEPS, TabletopEnv
from trimvla.sim.workers import spread

VOTES = 2  # chunks that vote on an action, where every step infers


@dataclass(frozen=True)
class Outcome:
    """One episode."""

    seed: int
    verb: str
    instruction: str
    success: bool
    steps: int


Round = dict[str, Outcome]
"""One seed, played by every actor: name -> outcome."""
Load = Callable[[], AbstractContextManager[Mapping[str, Actor]]]
"""Opens the actors, by name and in the order in which they play, and closes them; in every process that plays."""


@dataclass(frozen=True)
class Setting:
    """What all episodes of an evaluation have in common; see `run_episode` and `TabletopEnv`."""

    variant: str = "default"
    swap_instruction: bool = False
    execute: int = 1


def run_episode(
    actor: Actor, env: TabletopEnv, seed: int, *, swap_instruction: bool = False, execute: int = 1, horizon: int = 16
) -> Outcome:
    """Play one episode.

    Args:
        actor: the policy.
        env: reused between episodes.
        seed: of the table and of the noise.
        swap_instruction: say a sentence about another object; success is still judged by the original goal.
        execute: steps of each chunk that are executed before the next picture is looked at; 1 also lets the last
            `VOTES` chunks vote (CogACT's adaptive ensemble).
        horizon: rows of a chunk.
    """
    observation, info = env.reset(seed=seed)
    sentence = env.swapped_instruction() if swap_instruction else env.instruction
    ensemble, chunk, done, step = AdaptiveEnsemble(VOTES), np.zeros((0, 7)), False, 0
    while not done and step < MAX_STEPS:
        row = step % execute
        if row == 0:
            noise = np.random.default_rng((seed, step)).standard_normal((horizon, 7), dtype=np.float32)
            chunk = actor.infer(observation["image"], sentence, noise=noise).actions
        action = ensemble.step(chunk) if execute == 1 else chunk[row]
        observation, _, done, _, info = env.step(action)
        step += 1
    return Outcome(seed, env.scene().goal.verb, sentence, bool(info["success"]), step)


def play(load: Load, setting: Setting, seeds: Sequence[int]) -> Generator[Round, None, None]:
    """Play the seeds in turn, each with every actor before the next."""
    env = TabletopEnv(variant=setting.variant)
    options = {"swap_instruction": setting.swap_instruction, "execute": setting.execute}
    try:
        with load() as actors:
            for seed in seeds:
                yield {name: run_episode(actor, env, seed, **options) for name, actor in actors.items()}
    finally:
        env.close()


def evaluate_all(
    load: Load,
    setting: Setting,
    *,
    episodes: int,
    seed: int,
    workers: int = 1,
    progress: Callable[[Round], None] = lambda played: None,
) -> dict[str, dict[str, Any]]:
    """Every actor's success rate over the same seeds, `seed` ... `seed + episodes - 1`.

    Args:
        load: opens the actors; with several workers it must be picklable, as each process calls it.
        setting: of all episodes.
        episodes: of each actor.
        seed: of the first episode.
        workers: processes; the outcomes are the same however many there are.
        progress: is told each seed's outcomes, as they come.

    Returns:
        For each actor `summarise`, with "seed", "variant", "swap_instruction" and "execute"; outcomes by rising seed.
    """
    seeds = range(seed, seed + episodes)
    if seeds.stop > FIRST_SEED:
        raise ValueError(f"expected seeds below {FIRST_SEED} (demonstrations use the rest), got {seeds}")
    work = partial(play, load, setting)
    by_actor: dict[str, list[Outcome]] = defaultdict(list)
    with closing(work(seeds) if workers == 1 else spread(work, seeds, workers)) as rounds:
        for played in rounds:
            progress(played)
            for name, outcome in played.items():
                by_actor[name].append(outcome)
    return {name: summarise(results) | {"seed": seed} | asdict(setting) for name, results in by_actor.items()}


def evaluate(
    actor: Actor,
    *,
    episodes: int,
    seed: int,
    swap_instruction: bool = False,
    variant: str = "default",
    execute: int = 1,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> dict[str, Any]:
    """One actor's success rate, in this process; see `evaluate_all`."""
    results = evaluate_all(
        lambda: nullcontext({"actor": actor}),
        Setting(variant, swap_instruction, execute),
        episodes=episodes,
        seed=seed,
        progress=lambda played: progress(played["actor"]),
    )
    return results["actor"]


def summarise(results: list[Outcome]) -> dict[str, Any]:
    """What outcomes add up to, in any order of the seeds.

    Returns:
        {"success_rate", "interval": [low, high] (Wilson, 95 %), "episodes", "successes", "by_verb": {verb: [successes,
        episodes]}, "mean_steps" of the successes, "outcomes": [0 or 1, by rising seed]}.
    """
    results = sorted(results, key=lambda outcome: outcome.seed)
    successes = sum(outcome.success for outcome in results)
    by_verb: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for outcome in results:
        by_verb[outcome.verb][0] += outcome.success
        by_verb[outcome.verb][1] += 1
    steps = [outcome.steps for outcome in results if outcome.success]
    return {
        "success_rate": successes / len(results),
        "interval": list(wilson_interval(successes, len(results))),
        "episodes": len(results),
        "successes": successes,
        "by_verb": dict(sorted(by_verb.items())),
        "mean_steps": sum(steps) / len(steps) if steps else None,
        "outcomes": [int(outcome.success) for outcome in results],
    }
