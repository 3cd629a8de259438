"""Calibration frames of any environment: what is seen while its expert, or the bundle, plays.

Knows tasks and calibration data; decides nothing about a plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trimvla.launch.frames.recorded import Sample, draw
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, calibration_of
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.letterbox import resize
from trimvla.sim.actor import EXPERT
from trimvla.sim.episodes import Episode, Task, make_task
from trimvla.sim.evaluation.rollout import PolicyOrExpert, Setting, run_episode
from trimvla.sim.evaluation.virtual_time import Pace
from trimvla.sim.own.options import EnvOptions
from trimvla.sim.seeds import FIRST_SEED

SPREAD = 4  # times as many images are seen as are drawn
MOST_EPISODES = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlayedEnv:
    """Where frames are seen, and who plays if the environment has no expert."""

    env: str
    """As `make_task` knows it."""
    options: EnvOptions
    source: Path
    """The bundle."""


def calibration_from_env(
    played: PlayedEnv, cfg: PolicyConfig, tokenizer: Tokenizer, frames: int, seed: int
) -> Calibration:
    """So many frames, drawn with this seed from episodes that no evaluation plays.

    Raises ConfigError where there is no such environment, or nobody to play in it.
    """
    with closing(make_task(played.env, played.options)) as task, ExitStack() as stack:
        policy = find_policy(task, played.source, stack)
        pace = Pace(execute=1 if policy == EXPERT else 2)
        setting = Setting(played.env, pace=pace, options=played.options)
        seen = samples(task, policy, cfg.image_size, frames * SPREAD, setting)
        drawn = draw(seen, frames, np.random.default_rng(seed))
    images = np.stack([image for image, _ in drawn])
    return calibration_of(cfg, images, [instruction for _, instruction in drawn], tokenizer)


def find_policy(task: Task, source: Path, stack: ExitStack) -> PolicyOrExpert:
    """The environment's expert, else the bundle; `stack` closes it."""
    episode = task.episode(FIRST_SEED, official=False)
    try:
        episode.expert()
        return EXPERT
    except ConfigError:
        pass
    finally:
        episode.close()
    if not (source / bundles.MANIFEST).exists():
        words = f"an expert() of '{task.name}', or a bundle, to play for calibration frames"
        raise ConfigError(f"expected {words}, got neither: {source}")
    log.info("%s has no expert: %s plays for the calibration frames", task.name, source)
    return stack.enter_context(closing(Policy.load(source)))


def samples(
    task: Task,
    policy: PolicyOrExpert,
    image_size: int,
    count: int,
    setting: Setting,
    *,
    first: int = FIRST_SEED,
) -> Iterator[Sample]:
    """Images as the policy sees them with their instructions, of one episode after the other;
    `first` is the seed of the first.
    """
    found = 0
    for index in range(MOST_EPISODES):
        seen: list[Sample] = []

        def keep(episode: Episode, seen: list[Sample] = seen) -> None:
            seen.append((resize(episode.image, image_size), episode.instruction))

        run_episode(policy, task, first + index, setting, watch=keep)
        yield from seen
        found += len(seen)
        if found >= count:
            return
