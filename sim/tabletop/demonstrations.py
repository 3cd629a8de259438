"""Scripted demonstrations: images, privileged labels and action chunks, shard by shard.

Noise disturbs only what is executed; the label is always what the clean expert would do from there
(DART, arXiv 1703.09327). As the expert has no memory, each image is labelled for several goals of
its table, so one image teaches what different instructions mean. For the same reason a policy may
drive while the expert labels (DAgger, arXiv 1011.0686): these corrections show the states that the
policy gets itself into. Shards may hold what the wrist camera sees and where the robot is too.
Knows the simulator, the expert and anything that infers; knows no tokenizer and no training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_like import PolicyLike
from trimvla.sim.actor import noise_shape, observe_as
from trimvla.sim.seeds import FIRST_SEED
from trimvla.sim.tabletop import expert
from trimvla.sim.tabletop.env import TabletopEnv
from trimvla.sim.tabletop.expert import State
from trimvla.sim.tabletop.model import project
from trimvla.sim.tabletop.scene import Goal, Scene, sample_scene

GOALS = 6  # instructions labelled per image; the first is the one being pursued
AUX = 8  # object x y, target x y, tool x y z [m], opening
SHARD_EPISODES = 100
# the most steps of an episode; steps between two looks
CORRECTED_STEPS = 40
CORRECTED_EXECUTE = 2


@dataclass(frozen=True)
class Noise:
    """An episode's disturbance: translation [m] and turn [rad] a step, chance of a wrong gripper
    command, detour.
    """

    shift: float
    turn: float
    slip: float
    detour: int


def sample_noise(rng: np.random.Generator) -> Noise:
    """A fifth of the episodes is clean; a third first pursues another goal for a while."""
    level = 0.0 if rng.random() < 0.2 else float(rng.uniform(0.2, 1.0))
    detour = int(rng.integers(1, 9)) if rng.random() < 0.33 else 0
    return Noise(0.012 * level, 0.06 * level, 0.03 * level, detour)


def label_goals(scene: Scene, state: State, goal: Goal, rng: np.random.Generator) -> list[Goal]:
    """`GOALS` goals for one image, the pursued one first; with an object in hand only goals about
    that object.
    """
    others = [g for g in scene.goals() if g != goal and state.held in (-1, g.object)]
    rng.shuffle(others)
    return [goal, *(others * GOALS or [goal] * GOALS)][:GOALS]


def aux_label(scene: Scene, state: State, goal: Goal) -> np.ndarray:
    """float32[AUX]: where the object, its target and the tool are."""
    x, y, _ = state.objects[goal.object]
    tx, ty = (x, y) if goal.verb == "pick" else expert.support(scene, state, goal)[:2]
    return np.array([x, y, tx, ty, *state.tool, state.opening], np.float32)


def picture_points(scene: Scene, state: State, goal: Goal) -> np.ndarray:
    """float32[2, 2]: where the object and its target are in the image, in 0..1."""
    thing = state.objects[goal.object]
    target = thing if goal.verb == "pick" else expert.support(scene, state, goal)
    return project(np.array([thing, target]), scene.look)


class Shard:
    """Collects frames and writes them as one npz."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.more: dict[str, list[np.ndarray]] = {}
        self.chunks: list[np.ndarray] = []
        self.aux: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.texts: list[list[str]] = []

    def add(
        self,
        seen: dict[str, np.ndarray],
        scene: Scene,
        state: State,
        goal: Goal,
        rng: np.random.Generator,
    ) -> None:
        """Label what the environment gives to see for several goals."""
        goals = label_goals(scene, state, goal, rng)
        self.images.append(seen["image"])
        for name in seen.keys() - {"image"}:
            self.more.setdefault(name, []).append(seen[name])
        self.chunks.append(np.stack([expert.chunk(scene, state, g) for g in goals]))
        self.aux.append(np.stack([aux_label(scene, state, g) for g in goals]))
        self.points.append(np.stack([picture_points(scene, state, g) for g in goals]))
        self.texts.append([scene.instruction(g) for g in goals])

    def save(self, path: Path) -> None:
        """Write beside and rename: a shard is complete or absent."""
        partial = path.with_suffix(f".{os.getpid()}.part")
        more: Any = {name: np.stack(rows) for name, rows in self.more.items()}
        with partial.open("wb") as file:
            np.savez(
                file,
                images=np.stack(self.images),
                **more,
                chunks=np.stack(self.chunks),
                aux=np.stack(self.aux),
                points=np.stack(self.points),
                texts=np.array(self.texts),
            )
        partial.rename(path)


def disturb(
    action: expert.Action, drift: np.ndarray, noise: Noise, rng: np.random.Generator
) -> np.ndarray:
    """The executed action float32[7]: the expert's plus drift, sometimes with the wrong gripper
    command.
    """
    dx, dy, dz, dyaw, gripper = action
    if rng.random() < noise.slip:
        gripper = 1.0 - gripper
    shift = drift + rng.normal(0.0, noise.shift, 3)
    return np.array(
        [
            dx + shift[0],
            dy + shift[1],
            dz + shift[2],
            0,
            0,
            dyaw + rng.normal(0, noise.turn),
            gripper,
        ],
        np.float32,
    )


def episode(env: TabletopEnv, seed: int, shard: Shard) -> bool:
    """Run one disturbed episode into the shard; True when it ended in success."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    noise = sample_noise(rng)
    goals = scene.goals()
    astray = goals[int(rng.integers(len(goals)))]
    observation, _ = env.reset(seed=seed, options={"scene": scene})
    drift = np.zeros(3)
    for k in range(45):
        state = env.state()
        shard.add(observation, scene, state, scene.goal, rng)
        drift = 0.6 * drift + rng.normal(0.0, noise.shift * 0.5, 3)
        pursued = astray if k < noise.detour else scene.goal
        action = disturb(expert.act(scene, state, pursued), drift, noise, rng)
        observation, _, done, _, _ = env.step(action)
        if done:
            shard.add(observation, scene, env.state(), scene.goal, rng)
            return True
    return False


def corrected_episode(env: TabletopEnv, seed: int, shard: Shard, actor: PolicyLike) -> bool:
    """Let a policy drive, label every image with what the expert would do; True when it ended in
    success.
    """
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed, options={"scene": sample_scene(rng)})
    chunk = np.zeros((0, 7))
    for k in range(CORRECTED_STEPS):
        shard.add(observation, env.scene(), env.state(), env.scene().goal, rng)
        row = k % CORRECTED_EXECUTE
        if row == 0:
            noise = rng.standard_normal(noise_shape(actor), dtype=np.float32)
            chunk = actor.infer(
                observe_as(observation, env.instruction, actor), noise=noise
            ).actions
        observation, _, done, _, _ = env.step(chunk[row])
        if done:
            return True
    return False


def make_shard(
    path: Path, first_seed: int, episodes: int, bundle: str | None = None, *, wrist: bool = False
) -> tuple[int, int]:
    """Write one shard, driven by the expert or by the policy of a bundle; (frames, successes).

    Args:
        path: the shard, an .npz.
        first_seed: of the first episode; the others follow.
        episodes: how many.
        bundle: whose policy drives, while the expert labels; None: the expert drives.
        wrist: see `TabletopEnv`.

    Example:
        >>> from pathlib import Path
        >>> from trimvla.sim import make_shard
        >>> frames, successes = make_shard(Path("shard-0000.npz"), 1_000_000, episodes=1)
        >>> successes
        1
    """
    env = TabletopEnv(wrist=wrist)
    shard = Shard()
    successes = 0
    actor = None if bundle is None else Policy.load(bundle, threads=1)
    for seed in range(first_seed, first_seed + episodes):
        successes += (
            episode(env, seed, shard)
            if actor is None
            else corrected_episode(env, seed, shard, actor)
        )
    env.close()
    shard.save(path)
    return len(shard.images), successes


def make_shards(
    directory: Path,
    count: int,
    workers: int,
    *,
    first: int = 0,
    bundle: str | None = None,
    wrist: bool = False,
    episodes: int = SHARD_EPISODES,
) -> Iterator[tuple[int, int]]:
    """Write the missing ones of `count` shards from number `first` on; yields (frames, successes)
    as each is done.

    With `bundle` its policy drives (corrections), else the expert. `wrist`: see `TabletopEnv`.
    `episodes`: the first ones of each shard, where not all are wanted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(first, first + count) if not shard_path(directory, i).exists()]
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                make_shard,
                shard_path(directory, i),
                FIRST_SEED + i * SHARD_EPISODES,
                episodes,
                bundle,
                wrist=wrist,
            )
            for i in missing
        ]
        for job in as_completed(jobs):
            yield job.result()


def shard_path(directory: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return directory / f"shard-{index:04d}.npz"
