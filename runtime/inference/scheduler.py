"""One thought after the other: on which rung, and guided by what.

Between the process `policy` and its policies.

Chooses the bundle that thinks next (`ladder.py`, from latency, temperature, power and motion) and
what is known of its chunk already (`guide.py`); both stand in the chunk. All bundles are loaded and
warm: a switch loads nothing. Knows anything that infers; no socket.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from trimvla.runtime.bundle.manifest import ActionKind, Manifest
from trimvla.runtime.bus.messages import ActionChunk, Guidance, Task
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.chunks.rtc import RtcConfig, guide, known_rows
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.board_sensors import Board, read_board
from trimvla.runtime.inference.ladder import Conditions, Ladder, LadderConfig
from trimvla.runtime.inference.motion_phase import Phase, PhaseConfig
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_like import Chunk, Known, PolicyLike
from trimvla.runtime.preprocess.observation import Observation, blank_observation

log = logging.getLogger(__name__)
SENSE_NS = NS_PER_S  # between two looks at the board's sensors
# calls on a rung, and which of them stands for the next one's time
WINDOW = 50
QUANTILE = 0.9
WARM_CALLS = 3  # on each rung; the first is slower
# of a manifest's `action`: alike on all rungs
TASK_FIELDS = ("horizon", "dim", "control_hz", "kinds")


@dataclass(frozen=True)
class SchedulerConfig:
    """How rungs and guidance are chosen."""

    rtc: RtcConfig = field(default_factory=RtcConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    phase: PhaseConfig = field(default_factory=PhaseConfig)


@dataclass(frozen=True)
class ScheduledInference:
    """The result of a call, and the fields of its chunk about how it was made."""

    result: Chunk
    about: dict[str, Any]
    """Fields of the `ActionChunk`: guidance, rung, rung_reason."""


class InferenceScheduler:
    """Remembers what the next thought needs: the last chunk, and how long each rung takes."""

    def __init__(
        self,
        rungs: Mapping[str, PolicyLike],
        config: SchedulerConfig | None = None,
        *,
        costs_s: Sequence[float] = (),
        kinds: Sequence[ActionKind] = (),
        sense: Callable[[], Board] = read_board,
        now_ns: Callable[[], int] = monotonic_ns,
    ) -> None:
        """`rungs`: the top one first; with one alone there is no ladder.

        `costs_s`: what a warm call took on each.
        """
        if len(rungs) > 1 and len(costs_s) != len(rungs):
            raise ConfigError(
                f"expected what a call takes on each of {len(rungs)} rungs, got {list(costs_s)}"
            )
        self._names = tuple(rungs)
        self._policies = tuple(rungs.values())
        self._config = config or SchedulerConfig()
        self._ladder = Ladder(self._config.ladder, costs_s) if len(rungs) > 1 else None
        self._phase = Phase(self._config.phase, kinds)
        self._sense = sense
        self._now_ns = now_ns
        self._board = Board()
        self._sensed_ns = -SENSE_NS
        self._took = [deque(list(costs_s[i : i + 1]), WINDOW) for i in range(len(rungs))]
        self._last: ActionChunk | None = None

    @property
    def rung(self) -> int:
        """The number of the bundle that thinks next, from the top."""
        return 0 if self._ladder is None else self._ladder.rung

    def run(
        self,
        task: Task,
        observation: Observation,
        time_ns: int,
        seed: tuple[int, ...],
        telemetry: Telemetry,
    ) -> ScheduledInference:
        """One call on an observation of `time_ns`. Raises what the policy raises."""
        start_ns = self._now_ns()
        self._choose(start_ns, telemetry)
        guidance = self._guidance(task, time_ns, start_ns)
        known = (
            None
            if guidance is None or self._last is None
            else Known(*known_rows(self._last, guidance))
        )
        policy = self._policies[self.rung]
        result = policy.infer(observation, seed=seed, known=known)
        self._note(self._now_ns(), start_ns, telemetry)
        about: dict[str, Any] = {"guidance": guidance}
        if self._ladder is not None:
            about |= {"rung": self._names[self.rung], "rung_reason": self._ladder.reason}
        return ScheduledInference(result, about)

    def published(self, chunk: ActionChunk) -> None:
        """The chunk was published, with the sequence number that it has."""
        last = self._last
        if last is not None and (last.episode, last.instruction) != (
            chunk.episode,
            chunk.instruction,
        ):
            self._phase.reset()
        self._last = chunk
        if self._ladder is not None:
            self._phase.receive(chunk)

    def forget(self) -> None:
        """An image was refused: the last chunk may have been made of no better one, and guides
        none.
        """
        self._last = None

    def expected_s(self) -> float:
        """What the next call takes, by the slower ones of the last."""
        took = self._took[self.rung]
        return float(np.quantile(took, QUANTILE)) if took else 0.0

    def _guidance(self, task: Task, time_ns: int, now_ns: int) -> Guidance | None:
        ready_ns = now_ns + round(self.expected_s() * NS_PER_S)
        last = self._last if self._last is not None and self._last.serves(task) else None
        return guide(self._config.rtc, last, task.episode, time_ns, ready_ns)

    def _note(self, now_ns: int, start_ns: int, telemetry: Telemetry) -> None:
        seconds = (now_ns - start_ns) / NS_PER_S
        self._took[self.rung].append(seconds)
        if self._ladder is not None:
            telemetry.time(f"rung.{self._names[self.rung]}", seconds * 1e3)
            self._ladder.timed(now_ns / NS_PER_S, seconds)

    def _choose(self, now_ns: int, telemetry: Telemetry) -> None:
        """Move to the rung that the ladder decides on, and log a change."""
        if self._ladder is None:
            return
        board = self._feel(now_ns)
        conditions = Conditions(board.temperature_c, board.power_w, self._phase.fine(now_ns))
        switch = self._ladder.decide(now_ns / NS_PER_S, conditions)
        telemetry.values["rung"] = float(self.rung)
        if board.temperature_c is not None:
            telemetry.values["temperature_c"] = board.temperature_c
        if switch is not None:
            telemetry.count("rung_switches")
            telemetry.count(f"rung_by_{switch.cause}")
            names = (self._names[switch.before], self._names[switch.after])
            log.info("rung %s -> %s: %s", *names, switch.reason)

    def _feel(self, now_ns: int) -> Board:
        if now_ns - self._sensed_ns >= SENSE_NS:
            self._board = self._sense()
            self._sensed_ns = now_ns
        return self._board


def check_rungs(manifests: Mapping[str, Manifest]) -> None:
    """Raise ConfigError unless all rungs drive the same robot and look at the same."""
    (top, first), *others = manifests.items()
    for name, manifest in others:
        for field_name in TASK_FIELDS:
            _check_alike(top, name, f"action.{field_name}", first, manifest)
        _check_alike(top, name, "images.names", first, manifest)
        _check_alike_states(top, name, first, manifest)


def _check_alike(top: str, name: str, field_name: str, first: Manifest, other: Manifest) -> None:
    expected = attrgetter(field_name)(first)
    got = attrgetter(field_name)(other)
    if expected != got:
        raise ConfigError(f"rungs: '{field_name}' is {expected} in '{top}', got {got} in '{name}'")


def _check_alike_states(top: str, name: str, first: Manifest, other: Manifest) -> None:
    """A rung may do without a state that the others read."""
    if first.state is not None and other.state is not None:
        _check_alike(top, name, "state.names", first, other)
        _check_alike(top, name, "state.dim", first, other)


def warm_up(policy: Policy, guided: bool) -> float:
    """Make the first calls, which are slower, through every stage; what the last one took [s]."""
    action = policy.manifest.action
    nothing = blank_observation(policy.manifest)
    start_ns = 0
    if guided:
        rows = np.zeros((action.horizon, action.dim))
        policy.infer(nothing, known=Known(rows, np.zeros(action.horizon, np.float32)))
    for _ in range(WARM_CALLS):
        start_ns = monotonic_ns()
        policy.infer(nothing)
    return (monotonic_ns() - start_ns) / NS_PER_S
