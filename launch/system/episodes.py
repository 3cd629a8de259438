"""Plays episodes on a running system: has the table set, gives the task, watches, records. No
physics.

An episode begins in two steps: first the task is inactive, until the robot reports that the table
is set; then it is active, with a start time that makes every earlier image worthless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import msgspec

from trimvla.launch.system.client import SystemClient, new_task
from trimvla.runtime.bus.messages import Episode, Report, SimState
from trimvla.runtime.clock import NS_PER_S, monotonic_ns

READY_TIMEOUT_S = 60.0  # imports and model loading on a slow, busy machine
SET_TIMEOUT_S = 10.0
PLAY_TIMEOUT_S = 90.0
LAST_S = 0.5  # for the last reports of processes that end


@dataclass(frozen=True)
class Request:
    """What to play: number, seed of the table, instruction, and how the table looks."""

    number: int
    seed: int
    instruction: str
    variant: str = "default"


@dataclass
class Recording:
    """What happened. `states` are one per step, in order; `seconds` from the task to its end."""

    request: Request
    states: list[SimState] = field(default_factory=list)
    success: bool = False
    steps: int = 0
    seconds: float = 0.0
    reason: str = ""


class EpisodeClient:
    """Publishes `task`, receives `episode`, the simulated states and every process's report."""

    def __init__(self, run_dir: Path, processes: list[str], check: Callable[[], None]) -> None:
        """`check` raises if a process has ended; it is called all the time."""
        self._client = SystemClient(
            run_dir,
            sends=["task"],
            receives=["episode", "sim/state"],
            processes=processes,
            check=check,
        )

    def wait_until_ready(self, process: str) -> None:
        """Return when this process reports that it has started. Raises NoAnswerError."""
        ready = f"'{process}' to start"
        self._client.until(lambda: self.report(process).state != "starting", READY_TIMEOUT_S, ready)

    def play(
        self, request: Request, watch: Callable[[Recording], None] = lambda recording: None
    ) -> Recording:
        """One episode; `watch` is called about twenty times a second.

        Raises NoAnswerError where the system does not answer, and whatever `check` raises.
        """
        recording = Recording(request)
        self._begin(request, active=False)
        is_set = "the table to be set"
        self._client.until(lambda: self._episode(request) is not None, SET_TIMEOUT_S, is_set)
        started_ns = self._begin(request, active=True)

        def ended() -> bool:
            self._record(recording)
            watch(recording)
            episode = self._episode(request)
            return episode is not None and episode.done and _shows_end(recording)

        self._client.until(ended, PLAY_TIMEOUT_S, f"episode {request.number} to end")
        self._client.begin(None)
        recording.seconds = (monotonic_ns() - started_ns) / NS_PER_S
        return recording

    def report(self, process: str) -> Report:
        """The newest report of a process; an empty one, `starting`, before the first."""
        return self._client.report(process)

    def last_reports(self, timeout_s: float = LAST_S) -> dict[str, Report]:
        """Every process's newest report, after those of ending processes have come in."""
        self._client.receive_for(timeout_s)
        return {name: self.report(name) for name in self._client.processes}

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    def __enter__(self) -> EpisodeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, request: Request, *, active: bool) -> int:
        """Give the task from now on; when it began."""
        task = new_task(request.instruction, request.number, seed=request.seed)
        options = {"variant": request.variant}
        self._client.begin(msgspec.structs.replace(task, active=active, options=options))
        return task.started_ns

    def _episode(self, request: Request) -> Episode | None:
        message = self._client["episode"].message
        known = isinstance(message, Episode) and message.episode == request.number
        return message if isinstance(message, Episode) and known else None

    def _record(self, recording: Recording) -> None:
        state = self._client["sim/state"].message
        episode = self._episode(recording.request)
        seen = recording.states[-1].step if recording.states else -1
        number = recording.request.number
        if isinstance(state, SimState) and state.episode == number and state.step > seen:
            recording.states.append(state)
        if episode is not None:
            recording.success = episode.success
            recording.steps = episode.step
            recording.reason = episode.reason


def _shows_end(recording: Recording) -> bool:
    """Whether the last state is there too: it may come after the report of the episode's end."""
    return bool(recording.states) and recording.states[-1].step == recording.steps
