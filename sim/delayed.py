"""Episodes in which thinking takes time: virtual time, the runtime's own chunk queue, seam and guide.

The world goes on while the policy thinks, as on a robot, and yet every episode is fixed by its seed and needs no clock:
a chunk that was made from the picture of one tick is there `think_s` later. Knows the tabletop and anything that
infers; no socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.chunk_queue import ChunkQueue, Due, QueueConfig
from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.fallback import hold
from trimvla.runtime.guide import RtcConfig, guide, known_rows
from trimvla.runtime.manifest import ActionKind
from trimvla.runtime.messages import ActionChunk
from trimvla.runtime.policy import Known
from trimvla.runtime.seam import Seam
from trimvla.sim.rollout import Outcome
from trimvla.sim.tabletop import CONTROL_HZ, MAX_STEPS, TabletopEnv

KINDS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
PERIOD_NS = NS_PER_S // CONTROL_HZ
STILL = np.array([0.0] * 6 + [1.0])  # before the first chunk


class Result(Protocol):
    """What `Guided.infer` gives."""

    @property
    def actions(self) -> NDArray[np.float64]:
        """float64[H, 7], un-normalised."""
        ...


class Guided(Protocol):
    """What thinks; a `runtime.policy.Policy` that was loaded `guided` is one."""

    def infer(self, image: np.ndarray, instruction: str, *, seed: tuple[int, ...], known: Known | None) -> Result:
        """uint8[h, w, 3], a sentence, what guides -> the next actions."""
        ...


@dataclass(frozen=True)
class Delay:
    """How long thinking takes, and how chunks become commands."""

    think_s: float = 0.5
    queue: QueueConfig = field(default_factory=QueueConfig)
    rtc: RtcConfig = field(default_factory=RtcConfig)
    valid_rows: int = 12
    """Of a chunk; some pass while the policy thinks, and twice as many until the next chunk is there."""


@dataclass(frozen=True, eq=False)
class Tick:
    """One command, and where it came from."""

    step: int
    action: NDArray[np.float64]
    chunk: ActionChunk | None
    """None: there was none that was due."""
    success: bool = False


class Mind:
    """Thinks about one picture at a time."""

    def __init__(self, actor: Guided, sentence: str, seed: int, delay: Delay) -> None:
        self._actor, self._sentence, self._seed, self._delay = actor, sentence, seed, delay
        self._ready: ActionChunk | None = None
        self._last: ActionChunk | None = None

    def look(self, step: int, image: NDArray[np.uint8]) -> ActionChunk | None:
        """The chunk that has become ready, if one has; and if nothing is thought about now, this picture is."""
        now, done = step * PERIOD_NS, None
        if self._ready is not None and self._ready.produced_ns <= now:
            done, self._ready = self._ready, None
            self._last = done
        if self._ready is None:
            self._ready = self._think(step, image)
        return done

    def _think(self, step: int, image: NDArray[np.uint8]) -> ActionChunk:
        now = step * PERIOD_NS
        ready_ns = now + to_ns(self._delay.think_s)
        guidance = guide(self._delay.rtc, self._last, 0, now, ready_ns)
        known = Known(*known_rows(self._last, guidance)) if guidance and self._last else None
        seed = (self._seed, step)
        result = self._actor.infer(image, self._sentence, seed=seed, known=known)
        return ActionChunk(
            time_ns=now,
            sequence=step,
            episode=0,
            actions=tuple(map(tuple, result.actions.tolist())),
            control_hz=CONTROL_HZ,
            valid_rows=self._delay.valid_rows,
            produced_ns=ready_ns,
            frame_sequence=step,
            seed=seed,
            guidance=guidance,
        )


class Follower:
    """Chunks in, one command a tick out, as the process `control` does it, without a gate."""

    def __init__(self, queue: QueueConfig) -> None:
        self._queue = ChunkQueue(queue, KINDS)
        self._seam = Seam(queue.max_jump or np.full(len(KINDS), np.inf))
        self._before = STILL

    def step(self, step: int, chunk: ActionChunk | None) -> tuple[NDArray[np.float64], ActionChunk | None]:
        """The command of a tick, and the chunk that it is from, if it is from one."""
        now = step * PERIOD_NS
        if chunk is not None:
            self._queue.push(chunk, now)
        due = self._queue.due(now)
        if isinstance(due, Due):
            self._before = self._seam.ease(due.action, due.chunk.time_ns, self._before)
            return self._before, due.chunk
        self._before = hold(KINDS, self._before)
        return self._before, None


def play_delayed(actor: Guided, env: TabletopEnv, seed: int, delay: Delay) -> Iterator[Tick]:
    """Play one episode, command by command."""
    observation, _ = env.reset(seed=seed)
    mind, follower = Mind(actor, env.instruction, seed, delay), Follower(delay.queue)
    for step in range(MAX_STEPS):
        action, source = follower.step(step, mind.look(step, observation["image"]))
        observation, _, done, _, info = env.step(action)
        yield Tick(step, action, source, bool(info["success"]))
        if done:
            return


def run_delayed(actor: Guided, env: TabletopEnv, seed: int, delay: Delay) -> tuple[Outcome, list[Tick]]:
    """One episode's outcome, and all its commands."""
    ticks = list(play_delayed(actor, env, seed, delay))
    return Outcome(seed, env.scene().goal.verb, env.instruction, ticks[-1].success, len(ticks)), ticks


def jumps(ticks: list[Tick]) -> NDArray[np.float64]:
    """float64[n, 7]: by how much the command changed wherever one chunk followed another."""
    pairs = pairwise(ticks)
    changes = [
        np.abs(after.action - before.action)
        for before, after in pairs
        if before.chunk is not None and after.chunk is not None and before.chunk is not after.chunk
    ]
    return np.array(changes).reshape(-1, len(KINDS))
