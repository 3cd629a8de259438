"""A bundle over a data set: at every look it sees what was recorded then, and its actions are
compared with those that were recorded.

Open loop: what the bundle wants moves nothing, so errors do not add up and recoveries do not show.
Knows data sets and policies; plays no simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimvla.launch.datasets.dataset import DataSet, Episode, Rows
from trimvla.launch.datasets.info import ACTION, INFO
from trimvla.launch.datasets.results import ActionError, DataEvalResult, EpisodeError
from trimvla.launch.datasets.views import Views, find_views, observations
from trimvla.runtime.bundle.action_meaning import ActionMeaning, disagreement, meaning_of
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.control.motion_quality import MotionCounts, MotionMeter, figures, merged
from trimvla.runtime.errors import ConfigError, ObservationError, PromptError
from trimvla.runtime.inference.policy import Policy

Array = NDArray[np.float64]
STILL = 1e-9  # a standard deviation below it is none


@dataclass(frozen=True, eq=False)
class Played:
    """One episode: the recorded actions and the bundle's, float64[n, A]."""

    episode: Episode
    task: str
    recorded: Array
    wanted: Array
    motion: MotionCounts
    recorded_motion: MotionCounts


def check_data(data: DataSet, manifest: Manifest) -> None:
    """Raise ConfigError where a bundle's actions are none of the data set's."""
    where = data.root / INFO
    feature = data.layout.action
    action = manifest.action
    if feature.shape[0] != action.dim:
        names = f" of {list(feature.labels)}" if feature.labels else ""
        raise ConfigError(
            f"{where}: expected {action.dim} numbers for '{ACTION}', as bundle '{manifest.name}'"
            f" has them, got {feature.shape[0]}{names}"
        )
    got = meaning_of(action)
    if problem := disagreement(ActionMeaning(action.kinds, data.fps), got):
        raise ConfigError(f"{where}: {problem} of bundle '{manifest.name}'")


@dataclass(frozen=True, eq=False)
class OpenLoop:
    """A policy, what it sees of a data set, and how often it looks."""

    policy: Policy
    data: DataSet
    views: Views
    execute: int
    """Rows from one look to the next."""
    seed: int
    """Of the policy's noise."""

    def play(self, episode: Episode) -> Played:
        """One episode. Raises ConfigError for a row that the policy cannot read."""
        rows = self.data.rows(episode)
        wanted = self.actions(episode, rows)
        return Played(
            episode,
            rows.tasks[0],
            rows.actions,
            wanted,
            self.counted(wanted, rows.actions),
            self.counted(rows.actions, rows.actions),
        )

    def actions(self, episode: Episode, rows: Rows) -> Array:
        """What the bundle wants in each row float64[n, A]."""
        action = self.policy.manifest.action
        wanted = np.zeros_like(rows.actions)
        places = range(0, episode.length, self.execute)
        seen = observations(self.data, episode, rows, self.views, places)
        for place, observation in zip(places, seen, strict=True):
            noise = np.random.default_rng((self.seed, episode.index, place)).standard_normal(
                (action.horizon, action.sampled_dim), dtype=np.float32
            )
            try:
                chunk = self.policy.infer(observation, noise=noise).actions
            except (ObservationError, PromptError) as error:
                where = f"row {place} of episode {episode.index}"
                raise ConfigError(f"{self.data.root}: {where}: {error}") from None
            count = min(self.execute, episode.length - place)
            due = np.round(np.arange(count) * action.control_hz / self.data.fps).astype(int)
            wanted[place : place + count] = chunk[np.minimum(due, len(chunk) - 1)]
        return wanted

    def counted(self, actions: Array, recorded: Array) -> MotionCounts:
        """How a sequence of actions moves a robot; the range of a gripper that the bundle does not
        know is that of the recorded actions.
        """
        kinds = self.policy.manifest.action.kinds
        low, high = self.policy.action_range
        unknown = np.array([kind == "gripper" for kind in kinds]) & ~np.isfinite(low)
        low = np.where(unknown, recorded.min(axis=0), low)
        high = np.where(unknown, recorded.max(axis=0), high)
        meter = MotionMeter(kinds, self.data.fps, low, high)
        for row in actions:
            meter.add(row)
        return meter.counts()


@dataclass(frozen=True, kw_only=True)
class DataEval:
    """What is played: a bundle over a data set."""

    bundle: str
    """By path or by a shipped bundle's name."""
    root: Path
    """The data set's folder."""
    backend: str
    """What executes, for the result."""
    episodes: int | None = None
    """The first so many; all by default."""
    execute: int | None = None
    """Rows of a chunk that are compared; a quarter of the horizon by default."""
    seed: int = 0
    """Of the policy's noise."""
    views: Mapping[str, str] = field(default_factory=dict)
    """The policy's name of a camera -> the data set's."""


def evaluate(
    wanted: DataEval,
    manifest: Manifest,
    load: Callable[[], Policy],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[DataEvalResult, list[Played]]:
    """All of it; what does not fit is found before the bundle is opened.

    Args:
        wanted: what is played.
        manifest: the bundle's.
        load: opens the bundle.
        progress: is given how many of how many episodes are done.

    Raises:
        ConfigError: the data set is damaged, or does not fit the bundle.
    """
    data = DataSet(wanted.root)
    check_data(data, manifest)
    views = find_views(data, manifest.images.cameras, manifest.state, wanted.views)
    chosen = data.episodes[: wanted.episodes or len(data.episodes)]
    execute = wanted.execute or max(1, manifest.action.horizon // 4)
    reach = int(manifest.action.horizon * data.fps / manifest.action.control_hz)
    if not 1 <= execute <= max(1, reach):
        raise ConfigError(f"expected 1 to {reach} for --execute with this bundle, got {execute}")
    policy = load()
    loop = OpenLoop(policy, data, views, execute, wanted.seed)
    played: list[Played] = []
    try:
        for episode in chosen:
            played.append(loop.play(episode))
            progress(len(played), len(chosen))
    finally:
        policy.close()
    return summarise(wanted, loop, played), played


def summarise(asked: DataEval, loop: OpenLoop, played: Sequence[Played]) -> DataEvalResult:
    """The figures."""
    recorded = np.concatenate([each.recorded for each in played])
    wanted = np.concatenate([each.wanted for each in played])
    labels = loop.data.layout.action.labels or ("",) * recorded.shape[1]
    kinds = loop.policy.manifest.action.kinds
    gripper = [place for place, kind in enumerate(kinds) if kind == "gripper"]
    return DataEvalResult(
        ok=True,
        bundle=asked.bundle,
        data=loop.data.root,
        backend=asked.backend,
        fps=loop.data.fps,
        execute=loop.execute,
        episodes=[episode_error(each, recorded, gripper) for each in played],
        frames=len(recorded),
        dimensions=action_errors(recorded, wanted, labels),
        gripper_agreement=agreement(recorded, wanted, recorded, gripper),
        motion=figures(merged(each.motion for each in played)),
        recorded_motion=figures(merged(each.recorded_motion for each in played)),
    )


def action_errors(recorded: Array, wanted: Array, labels: Sequence[str]) -> list[ActionError]:
    """The error of each dimension over all rows float64[n, A]."""
    spread = recorded.std(axis=0)
    errors = rms(wanted - recorded)
    absolute = np.abs(wanted - recorded).mean(axis=0)
    return [
        ActionError(
            dimension=place,
            name=label,
            mean_absolute=float(absolute[place]),
            root_mean_square=float(errors[place]),
            of_spread=float(errors[place] / spread[place]) if spread[place] > STILL else None,
        )
        for place, label in enumerate(labels)
    ]


def episode_error(each: Played, every: Array, gripper: Sequence[int]) -> EpisodeError:
    """One episode's figures; `every` are all recorded actions float64[n, A]."""
    spread = every.std(axis=0)
    moving = spread > STILL
    of_spread = rms(each.wanted - each.recorded)[moving] / spread[moving]
    return EpisodeError(
        episode=each.episode.index,
        task=each.task,
        frames=len(each.recorded),
        of_spread=float(of_spread.mean()) if moving.any() else None,
        gripper_agreement=agreement(each.recorded, each.wanted, every, gripper),
        jerk_ratio=jerk_ratio(each.motion, each.recorded_motion),
    )


def rms(differences: Array) -> Array:
    """float64[A] of float64[n, A]."""
    return np.sqrt((differences**2).mean(axis=0))


def agreement(recorded: Array, wanted: Array, every: Array, gripper: Sequence[int]) -> float | None:
    """Share of the rows in which both are on the same side of the middle of the recorded range."""
    if not gripper:
        return None
    columns = list(gripper)
    middle = (every[:, columns].min(axis=0) + every[:, columns].max(axis=0)) / 2
    if np.all(every[:, columns].min(axis=0) == every[:, columns].max(axis=0)):
        middle = np.full(len(columns), 0.5)
    same = (recorded[:, columns] > middle) == (wanted[:, columns] > middle)
    return float(same.all(axis=1).mean())


def jerk_ratio(ours: MotionCounts, recorded: MotionCounts) -> float | None:
    """Geometric mean of the dimensions' ratios; None where nothing moved, or too short a time."""
    above = ours.jerk_rms
    below = recorded.jerk_rms
    moving = np.isfinite(above) & np.isfinite(below) & (above > 0) & (below > 0)
    if not moving.any():
        return None
    return float(np.exp(np.log(above[moving] / below[moving]).mean()))
