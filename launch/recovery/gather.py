"""Frames to recover on: of an environment, played by its expert and by the trimmed policy itself.

The tabletop gives several instructions about each image; elsewhere the others are drawn from those
that were seen. Knows simulators and instructions; decides nothing about training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trimvla.launch.frames.calibration import FRESH_SHARD, SIMULATED
from trimvla.launch.frames.played import PlayedEnv, find_policy, samples
from trimvla.launch.frames.recorded import draw
from trimvla.policies.recovery.frames import EXPERT, HELD_OUT, OWN, Drawn, Frames, frames_of
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.sim.actor import EXPERT as BY_EXPERT
from trimvla.sim.episodes import make_task
from trimvla.sim.evaluation.rollout import Setting
from trimvla.sim.evaluation.virtual_time import Pace
from trimvla.sim.seeds import FIRST_SEED
from trimvla.sim.tabletop import demonstrations

AN_EPISODE = 8  # images drawn of an episode: neighbours hardly differ
SHARD_EPISODES = 25
SHARDS = 4096  # seeds apart that two seeds of ours are
EPISODES = 64  # played of an environment at most, for each kind
SPREAD = 4  # times as many images are seen as are drawn
KINDS = (EXPERT, HELD_OUT, OWN)


@dataclass(frozen=True)
class Wanted:
    """How many frames of which kind."""

    frames: int
    """To train on."""
    own: int
    """Of these, reached by the trimmed policy."""
    held_out: int
    """Besides."""
    sentences: int
    """Instructions an image."""
    seed: int
    """Of everything that is drawn."""

    @property
    def counts(self) -> dict[int, int]:
        """Images of each kind."""
        return {EXPERT: self.frames - self.own, HELD_OUT: self.held_out, OWN: self.own}


def frames_from_env(
    played: PlayedEnv,
    cfg: PolicyConfig,
    tokenizer: Tokenizer,
    wanted: Wanted,
    *,
    student: Callable[[], Path],
    folder: Path,
) -> Frames:
    """Frames of an environment.

    Args:
        played: the environment, and the bundle that plays where it has no expert.
        cfg: of the policy.
        tokenizer: the policy's.
        wanted: how many.
        student: makes the trimmed policy as a bundle; called where it is to play.
        folder: where shards may lie.

    Raises:
        ConfigError: no such environment, or nobody to play in it.
    """
    parts = []
    for kind, count in wanted.counts.items():
        if not count:
            continue
        bundle = student() if kind == OWN else None
        if played.env == SIMULATED:
            parts.append(_of_tabletop(folder, kind, count, wanted, bundle))
        else:
            parts.append(
                _of_task(
                    played,
                    cfg.image_size,
                    kind=kind,
                    count=count,
                    wanted=wanted,
                    bundle=bundle,
                )
            )
    return frames_of(parts, cfg, tokenizer)


def _of_tabletop(folder: Path, kind: int, count: int, wanted: Wanted, bundle: Path | None) -> Drawn:
    """Images of episodes that no training and no evaluation plays, each with goals of its table."""
    shards = max(1, math.ceil(count / AN_EPISODE / SHARD_EPISODES))
    first = FRESH_SHARD + SHARDS * (len(KINDS) * wanted.seed + KINDS.index(kind) + 1)
    episodes = min(SHARD_EPISODES, math.ceil(count / AN_EPISODE))
    for _ in demonstrations.make_shards(
        folder,
        shards,
        min(shards, len(os.sched_getaffinity(0))),
        first=first,
        bundle=None if bundle is None else str(bundle),
        episodes=episodes,
    ):
        pass
    loaded = [
        np.load(demonstrations.shard_path(folder, index)) for index in range(first, first + shards)
    ]
    images = np.concatenate([shard["images"] for shard in loaded])
    texts = np.concatenate([shard["texts"] for shard in loaded])[:, : wanted.sentences]
    rng = np.random.default_rng((wanted.seed, kind))
    rows = np.sort(rng.permutation(len(images))[:count])
    return Drawn(images[rows], [[str(text) for text in row] for row in texts[rows]], kind)


def _of_task(
    played: PlayedEnv,
    image_size: int,
    *,
    kind: int,
    count: int,
    wanted: Wanted,
    bundle: Path | None,
) -> Drawn:
    """Images of any environment; every instruction is one that was given there."""
    with closing(make_task(played.env, played.options)) as task, ExitStack() as stack:
        if bundle is None:
            policy = find_policy(task, played.source, stack)
        else:
            policy = stack.enter_context(closing(Policy.load(bundle)))
        pace = Pace(execute=1 if policy == BY_EXPERT else 2)
        setting = Setting(played.env, pace=pace, options=played.options)
        start = FIRST_SEED + EPISODES * (len(KINDS) * wanted.seed + KINDS.index(kind))
        seen = samples(task, policy, image_size, count * SPREAD, setting, first=start)
        rng = np.random.default_rng((wanted.seed, kind))
        drawn = draw(seen, count, rng)
    if not drawn:
        raise ConfigError(f"expected frames of '{played.env}', got none")
    pool = sorted({text for _, text in drawn})
    texts = [[text, *others(pool, text, wanted.sentences - 1, rng)] for _, text in drawn]
    return Drawn(np.stack([image for image, _ in drawn]), texts, kind)


def others(pool: Sequence[str], text: str, count: int, rng: np.random.Generator) -> list[str]:
    """`count` instructions of the pool, this one left out where there are others."""
    rest = [each for each in pool if each != text] or [text]
    return [rest[int(index)] for index in rng.integers(len(rest), size=count)]
