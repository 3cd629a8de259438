"""Demonstrations of the WidowX tasks: disturbed expert episodes with clean labels, and corrections,
shard by shard.

As on the tabletop, noise disturbs only what is executed and a policy may drive while the expert
labels; but a scene has one sentence here. What an episode shows is shown again with object and
target elsewhere (`scatter`). Initial states are drawn; the official ones are kept for evaluation.
Pictures are of a window of the official one, and stay as they were rendered: the policy's size is
chosen when they are read. Knows the simulator and anything that infers; knows no training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_like import PolicyLike
from trimvla.runtime.preprocess.observation import one_image
from trimvla.sim.actor import noise_shape
from trimvla.sim.seeds import FIRST_SEED
from trimvla.sim.simpler.env import CAMERA, SimplerEpisode, SimplerTask
from trimvla.sim.simpler.scatter import Scatter
from trimvla.sim.simpler.shard import Shard
from trimvla.sim.simpler.twins import TWINS
from trimvla.sim.simpler.view import WORKSPACE, View, whole
from trimvla.sim.tabletop.demonstrations import Noise

# after the policy's resize to 128 it differs from the official size's by 0.4 grey levels
SMALL = whole(320)
FINE = replace(WORKSPACE, scale=320 / 448)
SHARD_EPISODES = 10
SCATTERED = 2  # further pictures of a moment, with object and target elsewhere
# the most steps of an episode, and how many are kept once it has succeeded
STEPS = 48
IDLE = 4
# the most where a policy drives, within the task's limit: what it does late, it must learn there
DRIVEN_STEPS = 72
EXECUTE = 2  # steps between two looks of a driving policy
ORIGIN = (-0.16, 0.05, 0.90)  # of the auxiliary positions, about the middle of the workspace [m]
INSTRUCTIONS = (
    "put carrot on plate",
    "put the spoon on the towel",
    "stack the green block on the yellow block",
    "put eggplant into yellow basket",
)
NOUNS = ("carrot", "plate", "spoon", "towel", "block", "eggplant", "basket")
STAY_OPEN = np.array([0, 0, 0, 0, 0, 0, 1.0])
# that the tabletop's tokenizer lacks
WORDS = ("carrot", "spoon", "towel", "block", "eggplant", "into", "basket")


def sample_noise(rng: np.random.Generator) -> Noise:
    """A fifth of the episodes is clean; half of them first go astray for a while."""
    level = 0.0 if rng.random() < 0.2 else float(rng.uniform(0.2, 1.0))
    return Noise(
        0.014 * level,
        0.10 * level,
        0.03 * level,
        int(rng.integers(2, 9)) if rng.random() < 0.5 else 0,
    )


def disturb(
    action: np.ndarray, drift: np.ndarray, noise: Noise, rng: np.random.Generator
) -> np.ndarray:
    """The executed action float[7]: the expert's with drift and jitter, sometimes with the wrong
    gripper command.
    """
    executed = action.astype(np.float64).copy()
    executed[:3] += drift + rng.normal(0.0, noise.shift, 3)
    executed[5] += rng.normal(0.0, noise.turn)
    if rng.random() < noise.slip:
        executed[6] = 1.0 - executed[6]
    return executed


def label(
    shard: Shard, episode: SimplerEpisode, points: np.ndarray, picture: np.ndarray
) -> np.ndarray:
    """Add what is seen now with the expert's next actions; returns these."""
    state = episode.state()
    chunk = episode.expert_chunk()
    places = np.array([*state.thing[:2], *state.target[:2], *state.tool])
    middle = np.array([*ORIGIN[:2], *ORIGIN[:2], *ORIGIN])
    angles = directions(episode.job.yaw_period, state.thing_yaw, state.yaw)
    joints, tool = episode.robot()
    shard.add_picture(picture)
    shard.chunks.append(chunk[None])
    shard.aux.append(np.array([[*(places - middle), state.opening, *angles]], np.float32))
    shard.points.append(project(points, np.array([state.thing, state.target]))[None])
    shard.joints.append(joints.astype(np.float32))
    shard.tool.append(tool.astype(np.float32))
    shard.states.append(state.numbers())
    shard.texts.append([episode.instruction])
    return chunk


def directions(period: float, *yaws: float) -> list[float]:
    """Cosine and sine of each yaw [rad], as often round as a grasp looks the same: what the turn is
    made of.
    """
    angles = [2 * math.pi / period * yaw for yaw in yaws]
    return [part for angle in angles for part in (math.cos(angle), math.sin(angle))]


def camera_matrix(task: SimplerTask, view: View) -> np.ndarray:
    """float64[3, 4]: world point -> picture of a view, in shares of its width and height."""
    extrinsic = task.env.get_sensor_params()[CAMERA]["extrinsic_cv"][0].numpy()[:3]
    width, height = view.size
    return np.diag([1 / width, 1 / height, 1.0]) @ view.intrinsic @ extrinsic


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points float[n, 3] [m] -> float32[n, 2] in the picture (x right, y down, in 0..1)."""
    seen = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ matrix.T
    return (seen[:, :2] / seen[:, 2:]).astype(np.float32)


def demonstrate(task: SimplerTask, seed: int, shard: Shard, scattered: int = SCATTERED) -> bool:
    """Run one disturbed episode into the shard; True when it ended in success.

    Args:
        task: renders what is kept.
        seed: of the initial state, the disturbance and the places of further pictures.
        shard: takes the pictures.
        scattered: further pictures of each moment that allows them.
    """
    rng = np.random.default_rng((seed, 1))
    episode = task.episode(seed, official=False)
    noise = sample_noise(rng)
    matrix = camera_matrix(task, task.view)
    idle = 0
    drift = np.zeros(3)
    astray = rng.uniform((-0.02, -0.02, -0.024), (0.02, 0.02, 0.016))
    elsewhere = Scatter(task, episode.state().thing[2])
    places = np.random.default_rng((seed, 2))
    for k in range(STEPS):
        action = label(shard, episode, matrix, episode.image)[0]
        for moved in elsewhere.look(episode, scattered, places):
            label(shard, moved, matrix, moved.image)
        idle += episode.success
        if idle > IDLE:
            break
        drift = 0.6 * drift + rng.normal(0.0, noise.shift * 0.5, 3)
        if k < noise.detour:
            episode.step(disturb(STAY_OPEN, astray, noise, rng))
        else:
            episode.step(disturb(action, drift, noise, rng))
    return episode.success


def correct(task: SimplerTask, seed: int, shard: Shard, actor: PolicyLike, view: View) -> bool:
    """Let a policy drive and label every picture with what the expert would do; True when it ended
    in success.

    Args:
        task: renders what the policy sees: the window with the official picture's pixels.
        seed: of the initial state and of the policy's noise.
        shard: takes the pictures.
        actor: the policy.
        view: what of a picture is kept.
    """
    episode = task.episode(seed, official=False)
    chunk = np.zeros((0, 7))
    idle = 0
    matrix = camera_matrix(task, view)
    for k in range(min(task.limit, DRIVEN_STEPS)):
        label(shard, episode, matrix, view.resized(episode.image))
        idle += episode.success
        if idle > IDLE:
            break
        if k % EXECUTE == 0:
            noise = np.random.default_rng((seed, k)).standard_normal(
                noise_shape(actor), dtype=np.float32
            )
            seen = one_image(episode.image, episode.instruction)
            chunk = actor.infer(seen, noise=noise).actions
        episode.step(chunk[k % EXECUTE])
    return episode.success


def make_shard(
    path: Path, name: str, first_seed: int, view: View = SMALL, bundle: str | None = None
) -> tuple[int, int]:
    """Write one shard of one task, driven by the expert or by the policy of a bundle; (frames,
    successes).
    """
    import torch

    torch.set_num_threads(1)
    actor = None if bundle is None else Policy.load(bundle, threads=1)
    task = SimplerTask(name, view=view.full if actor else view)
    shard = Shard(view.resized(task.background))
    successes = 0
    for seed in range(first_seed, first_seed + SHARD_EPISODES):
        won = (
            demonstrate(task, seed, shard)
            if actor is None
            else correct(task, seed, shard, actor, view)
        )
        successes += won
    task.close()
    shard.save(path)
    return len(shard), successes


def make_shards(
    directory: Path,
    count: int,
    workers: int,
    *,
    first: int = 0,
    bundle: str | None = None,
    names: tuple[str, ...] = (),
    view: View = SMALL,
) -> Iterator[tuple[int, int]]:
    """Write the missing ones of `count` shards of each task from number `first` on; yields (frames,
    successes).

    Args:
        directory: where shards go, as `<task>-<number>.npz`.
        count: shards of each task.
        workers: processes.
        first: number of the first shard; it decides the seeds.
        bundle: its policy drives (corrections); None: the expert does.
        names: of the tasks (default: all).
        view: what is kept of the official picture, and how finely.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = [(name, i) for i in range(first, first + count) for name in names or TWINS]
    missing = [(name, i) for name, i in wanted if not shard_path(directory, name, i).exists()]
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                make_shard,
                shard_path(directory, name, i),
                name,
                FIRST_SEED + i * SHARD_EPISODES,
                view,
                bundle,
            )
            for name, i in missing
        ]
        for job in as_completed(jobs):
            yield job.result()


def shard_path(directory: Path, name: str, index: int) -> Path:
    """Where a task's shard lies."""
    return directory / f"{name}-{index:04d}.npz"
