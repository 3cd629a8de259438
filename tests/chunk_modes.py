"""Recorded chunks through every mode: what the tests and the image in docs/concepts/chunks.md are
made of.

`python -m tests.chunk_modes record` plays episodes with the shipped policy, thinking taking half a
second, and keeps what its action stage was given and gave; `draw` makes the image. Such a replay
is open-loop: the images are those of the recorded run, whatever a mode would have done. `play`
lets every mode play.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.runtime.backends.chain import HostChain
from trimvla.sim.rendering import choose_renderer

choose_renderer()  # before anything imports mujoco

from trimvla.runtime.backends.runner import Runner, create  # noqa: E402
from trimvla.runtime.bundle import manifest as bundles  # noqa: E402
from trimvla.runtime.bundle.action_statistics import load_statistics  # noqa: E402
from trimvla.runtime.bundle.scale import binarise, normalise, unnormalise  # noqa: E402
from trimvla.runtime.bus.messages import ActionChunk  # noqa: E402
from trimvla.runtime.chunks.rtc import RtcConfig  # noqa: E402
from trimvla.runtime.inference.policy import Known, Policy  # noqa: E402
from trimvla.sim.evaluation.latency import constant  # noqa: E402
from trimvla.sim.evaluation.rollout import look_of  # noqa: E402
from trimvla.sim.evaluation.virtual_time import LatencySimulator, Look, Pace  # noqa: E402
from trimvla.sim.tabletop.env import CONTROL_HZ  # noqa: E402
from trimvla.sim.tabletop.task import TabletopTask  # noqa: E402

FILE = Path(__file__).with_name("recorded_chunks.npz")
PICTURE = Path(__file__).parent.parent / "docs" / "concepts" / "chunks" / "switch.png"
SEEDS = (1000, 1001, 1002, 1003)
BUNDLE = bundles.resolve("tabletop")
LATE = 3  # ticks from an image to the first command of its chunk
THINKING = constant("half a second", 500)
# some pass while the policy thinks, twice as many until the next chunk
PLAIN = Pace(mode="latest", valid_rows=12)
MODES = {
    "plain": PLAIN,
    "ensemble": replace(PLAIN, mode="ensemble"),
    "blend": replace(PLAIN, mode="blend"),
    "real-time": replace(PLAIN, rtc=RtcConfig(enabled=True)),
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """Calls of the action stage: `cognition` float32[n, D], the episode's seed and the step of
    each, what it gave.
    """

    seed: np.ndarray
    step: np.ndarray
    cognition: np.ndarray
    actions: np.ndarray
    """float32[n, 16, 7], un-normalised."""


@cache
def recorded() -> Recorded:
    """The fixture."""
    with np.load(FILE) as stored:
        return Recorded(**stored)


@cache
def runner(stage: str, bundle: str = "tabletop") -> Runner:
    """A stage of a shipped bundle."""
    directory = bundles.resolve(bundle)
    spec = bundles.load(directory, verify_hashes=False).stages[stage]
    return create("onnxruntime", directory / spec.file, spec, threads=1)


def sample(seed: int, step: int, cognition: np.ndarray, known: Known | None) -> np.ndarray:
    """What the action stage gives for a recorded call, float64[16, 7]; guided by known rows where
    there are some.
    """
    statistics = load_statistics(BUNDLE / bundles.STATISTICS, "tabletop")
    noise = np.random.default_rng((seed, step)).standard_normal((1, 16, 7), dtype=np.float32)
    inputs = {"cognition": cognition[None], "noise": noise}
    if known is None:
        raw = runner("action").run(inputs)["actions"][0]
    else:
        towards = {
            "known": normalise(known.actions, statistics)[None],
            "weight": known.weights[None, :, None],
        }
        raw = runner("action_guided").run(inputs | towards)["guided_actions"][0]
    return unnormalise(binarise(raw), statistics)


@dataclass(frozen=True, eq=False)
class Tick:
    """One command, and the chunk that it is from, if it is from one."""

    step: int
    action: np.ndarray
    chunk: ActionChunk | None


def fly(
    look: Look,
    pace: Pace,
    instruction: str = "",
    step: Callable[[np.ndarray], bool] = lambda action: False,
    ticks: int = 60,
) -> list[Tick]:
    """All commands until `step`, the world, says that it is over; thinking takes half a second."""
    simulator = LatencySimulator(look, CONTROL_HZ, pace, THINKING)
    told = []
    for tick in range(ticks):
        action = simulator.act(tick, instruction)
        told.append(Tick(tick, action, simulator.source))
        if step(action):
            break
    return told


def jumps(ticks: list[Tick]) -> np.ndarray:
    """float64[n, 7]: by how much the command changed wherever one chunk followed another."""
    pairs = [(a, b) for a, b in pairwise(ticks) if a.chunk and b.chunk and a.chunk is not b.chunk]
    return np.array([np.abs(after.action - before.action) for before, after in pairs]).reshape(
        -1, 7
    )


@cache
def replayed(seed: int, pace: Pace) -> list[Tick]:
    """The commands of one recorded episode."""
    calls = recorded()
    index = {int(calls.step[at]): at for at in np.flatnonzero(calls.seed == seed)}

    def look(tick: int, known: Known | None) -> np.ndarray:
        if tick not in index:  # after the record's end; too late to be executed
            return np.zeros((16, 7))
        at = index[tick]
        return (
            calls.actions[at] if known is None else sample(seed, tick, calls.cognition[at], known)
        )

    return fly(look, pace, ticks=max(index) + 2 * LATE)


class Notes:
    """Stands before a policy's action stage and keeps what it was given, and whatever else is
    noted.
    """

    def __init__(self, policy: Policy) -> None:
        self._action = policy.runners["action"]
        self.spec = self._action.spec
        self.describe = self._action.describe
        self.close = self._action.close
        policy.chain = HostChain({**policy.runners, "action": self})
        self.kept: dict[str, list[Any]] = {"seed": [], "step": [], "cognition": [], "actions": []}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the stage does."""
        self.kept["cognition"].append(inputs["cognition"][0])
        return self._action.run(inputs)

    def noting(self, look: Look, seed: int) -> Look:
        """The same look, noted."""

        def noted(tick: int, known: Known | None) -> np.ndarray:
            rows = look(tick, known)
            for name, value in (("seed", seed), ("step", tick), ("actions", np.float32(rows))):
                self.kept[name].append(value)
            return rows

        return noted


def record() -> None:
    """Play, and keep what the action stage was given."""
    policy = Policy.load(BUNDLE, threads=1)
    task = TabletopTask()
    notes = Notes(policy)
    for seed in SEEDS:
        episode = task.episode(seed, official=False)
        look = notes.noting(look_of(policy, episode, seed), seed)
        ticks = fly(look, MODES["plain"], episode.instruction, episode.step)
        print(f"seed {seed}: {episode.instruction}, success {episode.success}, {len(ticks)} ticks")
    arrays = {name: np.array(values) for name, values in notes.kept.items()}
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"{FILE.name}: {len(arrays['step'])} calls, {FILE.stat().st_size} bytes")


def play(first: int = 1030, episodes: int = 20) -> None:
    """Every mode in closed loop, each seed in turn."""
    policy = Policy.load(BUNDLE, threads=1, guided=True)
    task = TabletopTask()
    won = dict.fromkeys(MODES, 0)
    sizes = {name: [] for name in MODES}
    for seed in range(first, first + episodes):
        for name, pace in MODES.items():
            episode = task.episode(seed, official=False)
            ticks = fly(look_of(policy, episode, seed), pace, episode.instruction, episode.step)
            won[name] += episode.success
            sizes[name].append(1e3 * jumps(ticks)[:, :3])
        print(f"seed {seed}: {won}", flush=True)
    for name, parts in sizes.items():
        every = np.concatenate(parts)
        print(
            f"{name}: {won[name]} of {episodes}; jumps: mean {every.mean():.1f} mm, largest"
            f" {every.max():.1f} mm"
        )


def draw(seed: int = SEEDS[1], dimension: int = 2, ticks: int = 24) -> None:
    """Commands across switches, one panel a mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bounded = replace(PLAIN, max_jump=(0.02,) * 6 + (np.inf,))
    modes = {**MODES, "plain, at most 20 mm a jump": bounded}
    figure, panels = plt.subplots(
        len(modes), 1, figsize=(8, 9), sharex=True, sharey=True, layout="constrained"
    )
    for (name, pace), panel in zip(modes.items(), panels, strict=True):
        told = [(tick, tick.chunk) for tick in replayed(seed, pace) if tick.chunk is not None]
        for step, chunk in {chunk.sequence: chunk for _, chunk in told}.items():
            rows = [1e3 * row[dimension] for row in chunk.actions[: 2 * LATE]]
            panel.step(range(step, step + 2 * LATE), rows, where="post", color="0.8", linewidth=1)
        shown = [tick for tick, _ in told if tick.step < LATE + ticks]
        panel.step(
            [t.step for t in shown],
            [1e3 * t.action[dimension] for t in shown],
            where="post",
            color="C0",
        )
        for before, after in pairwise(shown):
            if before.chunk is not after.chunk:
                panel.axvline(after.step, color="C1", linewidth=0.8, linestyle=":")
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_ylabel("z [mm per tick]")
    panels[-1].set_xlabel(
        "control tick; grey: first six rows of each chunk, dotted: another chunk takes over"
    )
    panels[-1].set_xlim(LATE, LATE + ticks)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    {"record": record, "draw": draw, "play": play}[sys.argv[1]](*map(int, sys.argv[2:]))
