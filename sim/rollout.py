"""Episodes of a policy on the tabletop, in simulated time: outcomes, success rate, interval.

Every episode is fixed by its seed: the table, the goal and the policy's noise. The simulator waits while the policy
thinks. Knows the environment and anything that infers; knows no backend and no socket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimvla.runtime.chunks import AdaptiveEnsemble
from trimvla.sim.actor import Actor
from trimvla.sim.demonstrations import FIRST_SEED
from trimvla.sim.statistics import wilson
from trimvla.sim.tabletop import MAX_STEPS, TabletopEnv

VOTES = 2  # chunks that vote on an action, where every step infers


@dataclass(frozen=True)
class Outcome:
    """One episode."""

    seed: int
    verb: str
    instruction: str
    success: bool
    steps: int


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


def outcomes(
    actor: Actor, seeds: range, *, variant: str = "default", swap_instruction: bool = False, execute: int = 1
) -> Iterator[Outcome]:
    """Play one episode per seed; see `run_episode`."""
    if seeds.stop > FIRST_SEED:
        raise ValueError(f"expected seeds below {FIRST_SEED} (demonstrations use the rest), got {seeds}")
    env = TabletopEnv(variant=variant)
    try:
        for seed in seeds:
            yield run_episode(actor, env, seed, swap_instruction=swap_instruction, execute=execute)
    finally:
        env.close()


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
    """Success rate over seeds `seed` ... `seed + episodes - 1`.

    Returns:
        {"success_rate", "interval": [low, high] (Wilson, 95 %), "episodes", "successes", "by_verb": {verb: [successes,
        episodes]}, "mean_steps" of the successes, "seed", "variant", "swap_instruction", "execute", "outcomes"}.
    """
    results: list[Outcome] = []
    span = range(seed, seed + episodes)
    for outcome in outcomes(actor, span, variant=variant, swap_instruction=swap_instruction, execute=execute):
        results.append(outcome)
        progress(outcome)
    return summarise(results) | {
        "seed": seed, "variant": variant, "swap_instruction": swap_instruction, "execute": execute,
    }  # fmt: skip


def summarise(results: list[Outcome]) -> dict[str, Any]:
    """Counts, rate and interval."""
    successes = sum(outcome.success for outcome in results)
    by_verb: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for outcome in results:
        by_verb[outcome.verb][0] += outcome.success
        by_verb[outcome.verb][1] += 1
    steps = [outcome.steps for outcome in results if outcome.success]
    return {
        "success_rate": successes / len(results),
        "interval": list(wilson(successes, len(results))),
        "episodes": len(results),
        "successes": successes,
        "by_verb": dict(sorted(by_verb.items())),
        "mean_steps": sum(steps) / len(steps) if steps else None,
        "outcomes": [int(outcome.success) for outcome in results],
    }
