"""Plays episodes on a running system over its sockets: sets the table, gives the task, watches,
records. No physics.

An episode begins in two steps: first the task is inactive, until the robot says that the table is
set; then it is active, with a start time that makes every earlier picture worthless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import msgspec

from trimvla.runtime.bus.messages import Episode, Report, SimState, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.errors import TrimvlaError

TASK_PERIOD_S = 0.2
READY_TIMEOUT_S = 60.0  # imports and model loading on a slow, busy machine
SET_TIMEOUT_S = 10.0
PLAY_TIMEOUT_S = 90.0


class EpisodeError(TrimvlaError):
    """The system did not do its part of an episode."""


@dataclass(frozen=True)
class Request:
    """What to play: number, seed of the table, what to say, and how the table looks."""

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
    """The other end of `task` and `episode`; also hears every process's report."""

    def __init__(self, run_dir: Path, processes: list[str], check: Callable[[], None]) -> None:
        """`check` raises if a process has ended; it is called all the time."""
        self._processes = processes
        self._check = check
        self._tasks = Publisher(run_dir, topic("task"))
        names = ["episode", "sim/state", *(report(name) for name in processes)]
        self._hears = Subscriber(run_dir, [topic(name) for name in names])
        self._sent_ns = 0

    def wait_until_ready(self, process: str) -> None:
        """Return when this process reports that it has started."""
        self._wait(
            lambda: self.report(process).state != "starting",
            READY_TIMEOUT_S,
            f"'{process}' to start",
        )

    def play(
        self, request: Request, watch: Callable[[Recording], None] = lambda recording: None
    ) -> Recording:
        """One episode; `watch` is called about twenty times a second.

        Raises EpisodeError where the system does not answer, and whatever `check` raises.
        """
        recording = Recording(request)
        prepared = self._task(request, active=False)
        self._wait(
            lambda: self._episode(request) is not None,
            SET_TIMEOUT_S,
            "the table to be set",
            prepared,
        )
        task = self._task(request, active=True)

        def ended() -> bool:
            self._record(recording)
            watch(recording)
            episode = self._episode(request)
            return episode is not None and episode.done and _shows_end(recording)

        self._wait(ended, PLAY_TIMEOUT_S, f"episode {request.number} to end", task)
        recording.seconds = (monotonic_ns() - task.started_ns) / NS_PER_S
        return recording

    def report(self, process: str) -> Report:
        """The newest report of a process; an empty one, `starting`, before the first."""
        message = self._hears[report(process)].message
        return (
            message
            if isinstance(message, Report)
            else Report(time_ns=0, process=process, state="starting")
        )

    def last_reports(self, timeout_s: float = 0.5) -> dict[str, Report]:
        """Take in what ending processes say last."""
        deadline = time.monotonic() + timeout_s
        while (remaining := deadline - time.monotonic()) > 0:
            self._hears.update(remaining)
        return {name: self.report(name) for name in self._processes}

    def close(self) -> None:
        """Close the sockets."""
        self._tasks.close()
        self._hears.close()

    def __enter__(self) -> EpisodeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _task(self, request: Request, active: bool) -> Task:
        now = monotonic_ns()
        return Task(
            time_ns=now,
            episode=request.number,
            instruction=request.instruction,
            active=active,
            started_ns=now,
            seed=request.seed,
            options={"variant": request.variant},
        )

    def _wait(
        self, done: Callable[[], bool], timeout_s: float, what: str, task: Task | None = None
    ) -> None:
        """Listen, and repeat the task if there is one, until `done`."""
        deadline = time.monotonic() + timeout_s
        self._sent_ns = 0
        while not done():
            if time.monotonic() > deadline:
                raise EpisodeError(f"expected {what} within {timeout_s:g} s; {self._states()}")
            self._check()
            if task is not None and monotonic_ns() - self._sent_ns > TASK_PERIOD_S * NS_PER_S:
                self._sent_ns = monotonic_ns()
                self._tasks.send(msgspec.structs.replace(task, time_ns=self._sent_ns))
            self._hears.update(0.05)

    def _states(self) -> str:
        reports = [self.report(name) for name in self._processes]
        return ", ".join(
            f"{r.process} is {r.state}{f' ({r.reason})' if r.reason else ''}" for r in reports
        )

    def _episode(self, request: Request) -> Episode | None:
        message = self._hears["episode"].message
        return (
            message if isinstance(message, Episode) and message.episode == request.number else None
        )

    def _record(self, recording: Recording) -> None:
        state = self._hears["sim/state"].message
        episode = self._episode(recording.request)
        seen = recording.states[-1].step if recording.states else -1
        if (
            isinstance(state, SimState)
            and state.episode == recording.request.number
            and state.step > seen
        ):
            recording.states.append(state)
        if episode is not None:
            recording.success = episode.success
            recording.steps = episode.step
            recording.reason = episode.reason


def _shows_end(recording: Recording) -> bool:
    """Whether the last state is there too: it may come after the word that the episode is over."""
    return bool(recording.states) and recording.states[-1].step == recording.steps
