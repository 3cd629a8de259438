"""Recorded chunks through every mode: what the tests and the picture in docs/CHUNKS.md are made of.

`python -m tests.chunk_modes record` plays episodes with the shipped policy, thinking taking half a second, and keeps
what its action stage was given and gave; `draw` makes the picture. Such a replay is open-loop: the pictures are those
of the recorded run, whatever a mode would have done. `play` lets every mode play.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.launch.rendering import choose_renderer
from trimvla.runtime.chain import HostChain

choose_renderer()  # before anything imports mujoco

from trimvla.runtime import manifest as bundles  # noqa: E402
from trimvla.runtime.chunk_queue import QueueConfig  # noqa: E402
from trimvla.runtime.guide import RtcConfig, guide, known_rows  # noqa: E402
from trimvla.runtime.messages import ActionChunk  # noqa: E402
from trimvla.runtime.policy import Known, Policy, PolicyResult  # noqa: E402
from trimvla.runtime.preprocess import binarise, load_statistics, normalise, unnormalise  # noqa: E402
from trimvla.runtime.runner import Runner, create  # noqa: E402
from trimvla.sim.delayed import CONTROL_HZ, PERIOD_NS, Delay, Follower, Tick, jumps, run_delayed  # noqa: E402
from trimvla.sim.tabletop import TabletopEnv  # noqa: E402

FILE = Path(__file__).with_name("recorded_chunks.npz")
PICTURE = Path(__file__).parent.parent / "docs" / "chunks" / "switch.png"
SEEDS = (1000, 1001, 1002, 1003)
BUNDLE = bundles.resolve("tabletop")
LATE = 3  # ticks from a picture to the first command of its chunk
MODES = {
    "plain": Delay(),
    "ensemble": Delay(queue=QueueConfig(mode="ensemble")),
    "blend": Delay(queue=QueueConfig(mode="blend")),
    "real-time": Delay(rtc=RtcConfig(enabled=True)),
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """Calls of the action stage: `cognition` float32[n, D], the episode's seed and the step of each, what it gave."""

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


def sample(seed: int, step: int, cognition: np.ndarray, known: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """What the action stage gives for a recorded call, float64[16, 7]; guided by known rows where there are some."""
    statistics = load_statistics(BUNDLE / bundles.STATISTICS, "tabletop")
    noise = np.random.default_rng((seed, step)).standard_normal((1, 16, 7), dtype=np.float32)
    inputs = {"cognition": cognition[None], "noise": noise}
    if known is None:
        raw = runner("action").run(inputs)["actions"][0]
    else:
        towards = {"known": normalise(known[0], statistics)[None], "weight": known[1][None, :, None]}
        raw = runner(bundles.GUIDED).run(inputs | towards)["guided_actions"][0]
    return unnormalise(binarise(raw), statistics)


@cache
def chunks(seed: int, rtc: RtcConfig) -> dict[int, ActionChunk]:
    """The chunks of one recorded episode, by the step of their picture; guided where that is asked for."""
    calls, made, last, delay = recorded(), {}, None, Delay(rtc=rtc)
    for index in np.flatnonzero(calls.seed == seed):
        step = int(calls.step[index])
        now, ready = step * PERIOD_NS, step * PERIOD_NS + round(delay.think_s * 1e9)
        guidance = guide(delay.rtc, last, 0, now, ready)
        actions = calls.actions[index]
        if guidance is not None and last is not None:
            actions = sample(seed, step, calls.cognition[index], known_rows(last, guidance))
        last = made[step] = ActionChunk(
            time_ns=now,
            sequence=step,
            episode=0,
            actions=tuple(map(tuple, actions.tolist())),
            control_hz=CONTROL_HZ,
            valid_rows=delay.valid_rows,
            produced_ns=ready,
            frame_sequence=step,
            seed=(seed, step),
            guidance=guidance,
        )
    return made


def replayed(seed: int, delay: Delay) -> list[Tick]:
    """The commands of one recorded episode."""
    made, follower = chunks(seed, delay.rtc), Follower(delay.queue)
    steps = range(LATE, max(made) + 2 * LATE)
    commands = ((step, *follower.step(step, made.get(step - LATE))) for step in steps)
    return [Tick(*command) for command in commands]


class Notes:
    """A policy whose every call is kept; stands before its action stage too."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._action = policy, policy.runners["action"]
        self.spec, self.describe, self.close = self._action.spec, self._action.describe, self._action.close
        policy.chain = HostChain({**policy.runners, "action": self})
        self.kept: dict[str, list[Any]] = {"seed": [], "step": [], "cognition": [], "actions": []}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the stage does."""
        self.kept["cognition"].append(inputs["cognition"][0])
        return self._action.run(inputs)

    def infer(self, image: np.ndarray, instruction: str, *, seed: tuple[int, ...], known: Known | None) -> PolicyResult:
        """As the policy does."""
        result = self._policy.infer(image, instruction, seed=seed, known=known)
        for name, value in zip(("seed", "step", "actions"), (*seed, np.float32(result.actions)), strict=True):
            self.kept[name].append(value)
        return result


def record() -> None:
    """Play, and keep what the action stage was given."""
    notes, env = Notes(Policy.load(BUNDLE, threads=1)), TabletopEnv()
    for seed in SEEDS:
        outcome, _ = run_delayed(notes, env, seed, MODES["plain"])
        print(outcome)
    arrays = {name: np.array(values) for name, values in notes.kept.items()}
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"{FILE.name}: {len(arrays['step'])} calls, {FILE.stat().st_size} bytes")


def play(first: int = 1030, episodes: int = 20) -> None:
    """Every mode in closed loop, each seed in turn."""
    policy, env = Policy.load(BUNDLE, threads=1, guided=True), TabletopEnv()
    won, sizes = dict.fromkeys(MODES, 0), {name: [] for name in MODES}
    for seed in range(first, first + episodes):
        for name, delay in MODES.items():
            outcome, ticks = run_delayed(policy, env, seed, delay)
            won[name] += outcome.success
            sizes[name].append(1e3 * jumps(ticks)[:, :3])
        print(f"seed {seed}: {won}", flush=True)
    for name, parts in sizes.items():
        every = np.concatenate(parts)
        print(f"{name}: {won[name]} of {episodes}; jumps: mean {every.mean():.1f} mm, largest {every.max():.1f} mm")


def draw(seed: int = SEEDS[1], dimension: int = 2, ticks: int = 24) -> None:
    """Commands across switches, one panel a mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bounded = Delay(queue=QueueConfig(max_jump=(0.02,) * 6 + (np.inf,)))
    modes = {**MODES, "plain, at most 20 mm a jump": bounded}
    figure, panels = plt.subplots(len(modes), 1, figsize=(8, 9), sharex=True, sharey=True, layout="constrained")
    for (name, delay), panel in zip(modes.items(), panels, strict=True):
        made, told = chunks(seed, delay.rtc), replayed(seed, delay)[:ticks]
        for step, chunk in made.items():
            rows = [1e3 * row[dimension] for row in chunk.actions[: 2 * LATE]]
            panel.step(range(step, step + 2 * LATE), rows, where="post", color="0.8", linewidth=1)
        shown = [tick for tick in told if tick.chunk is not None]
        panel.step([t.step for t in shown], [1e3 * t.action[dimension] for t in shown], where="post", color="C0")
        for before, after in pairwise(shown):
            if before.chunk is not after.chunk:
                panel.axvline(after.step, color="C1", linewidth=0.8, linestyle=":")
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_ylabel("z [mm per tick]")
    panels[-1].set_xlabel("control tick; grey: first six rows of each chunk, dotted: another chunk takes over")
    panels[-1].set_xlim(LATE, LATE + ticks)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    {"record": record, "draw": draw, "play": play}[sys.argv[1]](*map(int, sys.argv[2:]))
