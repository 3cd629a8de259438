"""A policy behind its latency, in simulated time: what it decides on the image of one tick is due
only later.

The policy looks at the image of tick k when it is free, and its chunk is there at t_k + latency.
Until then the robot executes what is due of the last chunk, by the queue, the transition limiter
and the guidance that also run on the robot, or holds. Images exist at ticks only, so a latency acts
in whole control periods, rounded up. Without a latency the simulator waits while the policy infers.
Knows ticks and chunks; knows no policy's inside and no environment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.chunks.chunk_queue import ChunkQueue, Mode, QueueConfig
from trimvla.runtime.chunks.rtc import RtcConfig, guide, known_rows
from trimvla.runtime.chunks.transition import TransitionLimiter
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S
from trimvla.runtime.control.fallback import hold
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Known
from trimvla.sim.actor import KINDS
from trimvla.sim.evaluation.latency import Latency

FOREVER_S = 1e6
QUANTILE = 0.9  # of the looks so far: what the next is expected to take, as on the robot
Look = Callable[[int, Known | None], NDArray[np.floating]]
"""Tick, and what guides -> the chunk float[H, A] that the policy makes of that tick's image."""


@dataclass(frozen=True)
class Pace:
    """How often a policy looks, how much of its chunk is executed, and how one chunk follows
    another.
    """

    execute: int = 1
    """Ticks from one look to the next, at least; with 1 the last chunks vote on every action."""
    votes: int = 2
    """Chunks that vote (CogACT's adaptive ensemble)."""
    valid_rows: int = 8
    """Rows of a chunk that may be executed where there is a latency; as on the robot."""
    max_age_s: float = 2.0
    """Of the image behind an action where there is a latency; as on the robot."""
    mode: Mode | None = None
    """Of the queue; by default the last chunks vote where every tick looks, else the newest
    decides.
    """
    max_jump: tuple[float, ...] = ()
    """The transition limiter's bound; by default there is none."""
    rtc: RtcConfig = field(default_factory=RtcConfig)
    """Whether chunks are guided by the one before."""

    def queue(self, late: bool) -> QueueConfig:
        """The robot's queue; where the simulator waits, a chunk lasts until the next look."""
        voting = self.execute == 1 and self.votes > 1
        return QueueConfig(
            mode=self.mode or ("ensemble" if voting else "latest"),
            votes=self.votes,
            max_jump=self.max_jump,
            max_age_s=self.max_age_s if late else FOREVER_S,
        )


@dataclass(frozen=True)
class Robot:
    """What an action means to the robot that an episode drives."""

    kinds: tuple[ActionKind, ...] = KINDS
    start: tuple[float, ...] | None = None
    """The action before the first one, that keeps it still. By default nothing moves and the
    gripper is open.
    """

    def first(self, *, held: bool) -> NDArray[np.float64]:
        """The action float64[A] before the first one.

        Raises ConfigError where it is `held`, and no target is known that keeps the robot still.
        """
        if self.start is not None:
            return np.array(self.start)
        if held and "absolute" in self.kinds:
            raise ConfigError(
                "expected 'start_action' of the environment: until the first chunk it is held"
            )
        return np.array([float(kind == "gripper") for kind in self.kinds])


class LatencySimulator:
    """Drives one episode: called at every tick, returns the action for that tick."""

    def __init__(
        self,
        look: Look,
        hz: float,
        pace: Pace,
        latency: Latency | None = None,
        seed: int = 0,
        *,
        robot: Robot | None = None,
    ) -> None:
        """`seed` decides what is drawn of the latency; the robot is that of our own tasks unless it
        is named.
        """
        robot = robot or Robot()
        self._kinds = robot.kinds
        self._look = look
        self._pace = pace
        self._hz = hz
        # rounded down, a row would begin one nanosecond after its tick
        self._period_ns = math.ceil(NS_PER_S / hz)
        self._late = latency is not None
        self._draws = (
            latency.draws(seed) if latency is not None and latency.kind != "wall" else None
        )
        self._queue = ChunkQueue(pace.queue(self._late), self._kinds)
        self._transition = TransitionLimiter(pace.max_jump or np.full(len(self._kinds), np.inf))
        self._coming: ActionChunk | None = None
        self._newest: ActionChunk | None = None
        self._free_ns = 0
        self._looked = -pace.execute
        self._instruction: str | None = None
        self._last: NDArray[np.float64] = robot.first(held=self._late)
        self.source: ActionChunk | None = None
        """The chunk behind the last action; None for a hold."""
        self.wall_ms: list[float] = []
        """What each look took on this machine."""
        self.latencies_ms: list[float] = []
        """What each look was charged."""
        self.held = 0
        """Ticks without an action that was due."""
        self.held_because = ""
        """Why there was none at the last tick; empty where there was one."""

    def act(self, tick: int, instruction: str) -> NDArray[np.float64]:
        """The action float64[A] of this tick; ticks rise by one."""
        now_ns = tick * self._period_ns
        self._set_instruction(instruction)
        self._take(now_ns)
        if now_ns >= self._free_ns and tick - self._looked >= self._pace.execute:
            self._infer(tick, now_ns)
            self._take(now_ns)
        due = self._queue.due(now_ns)
        if isinstance(due, str):
            self.held += 1
            self.held_because = due
            self._last = hold(self._kinds, self._last)
            self.source = None
        else:
            self._last = self._transition.limit(due.action, due.chunk.time_ns, self._last)
            self.source = due.chunk
            self.held_because = ""
        return self._last

    def _set_instruction(self, instruction: str) -> None:
        """What was inferred for another instruction is void."""
        if instruction != self._instruction:
            self._queue.reset()
            self._transition.reset()
            self._coming = self._newest = None
            self._instruction = instruction

    def _take(self, now_ns: int) -> None:
        if self._coming is not None and self._coming.produced_ns <= now_ns:
            self._queue.push(self._coming, now_ns)
            self._newest = self._coming
            self._coming = None

    def _infer(self, tick: int, now_ns: int) -> None:
        expected_ms = float(np.quantile(self.latencies_ms, QUANTILE)) if self.latencies_ms else 0.0
        guidance = guide(
            self._pace.rtc, self._newest, 0, now_ns, now_ns + round(expected_ms * NS_PER_MS)
        )
        known = Known(*known_rows(self._newest, guidance)) if guidance and self._newest else None
        started_ns = time.perf_counter_ns()
        rows = self._look(tick, known)
        self.wall_ms.append((time.perf_counter_ns() - started_ns) / NS_PER_MS)
        charged_ms = self._charge()
        self._looked = tick
        self._free_ns = now_ns + round(charged_ms * NS_PER_MS)
        self._coming = ActionChunk(
            time_ns=now_ns,
            sequence=tick,
            episode=0,
            actions=tuple(map(tuple, rows.tolist())),
            control_hz=self._hz,
            valid_rows=min(self._pace.valid_rows, len(rows)) if self._late else len(rows),
            produced_ns=self._free_ns,
            frame_sequence=tick,
            seed=(),
            guidance=guidance,
        )

    def _charge(self) -> float:
        if not self._late:
            return 0.0
        self.latencies_ms.append(self.wall_ms[-1] if self._draws is None else next(self._draws))
        return self.latencies_ms[-1]
