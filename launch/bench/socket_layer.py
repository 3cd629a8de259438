"""Layer L3 of a benchmark: the process `policy` as `run` starts it, a frame published to it, its
chunk received.

This side plays camera, robot and operator on the real topics; the process does not know that it is
measured. Only its guards against old pictures and slow starts are wide open. Knows sockets and one
process; nothing of percentiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trimvla.launch.bench.turns import TOTAL, Times
from trimvla.launch.system.processes import programs
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import REPORT_PERIOD_S
from trimvla.runtime.bus.topics import color, report, topic
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns
from trimvla.runtime.errors import TrimvlaError

CAMERA = "front"
PROCESS = "policy"
SENT = ("task", "robot/state", color(CAMERA))
READY_TIMEOUT_S = 120.0  # imports and model loading on a slow, busy machine
ANSWER_TIMEOUT_S = 60.0
ASK_AGAIN_S = 2.0  # while connecting: who is not there yet hears nothing
SETTLE_S = 0.01  # task and state arrive before the picture; they have sockets of their own
POLL_S = 0.2
WIDE_OPEN: dict[str, Any] = {
    "max_hz": 1000.0,
    "camera_timeout_s": 3600.0,
    "budget": {"frame_s": ANSWER_TIMEOUT_S},
}


class NoAnswerError(TrimvlaError):
    """The process `policy` gave no chunk."""


@contextmanager
def socket_policy(
    bundle: Path,
    picture: np.ndarray,
    instruction: str,
    *,
    backend: str = "onnxruntime",
    provider: str | None = None,
    threads: int = 1,
) -> Iterator[SocketPolicy]:
    """Start the process with this bundle; it stops at the end. `SocketPolicy.connect` waits for it.

    Args:
        bundle: its directory.
        picture: uint8[h, w, 3], published again and again.
        instruction: the task's.
        backend: what executes the stages; see `runtime.runner`.
        provider: what executes inside the backend.
        threads: of an operator.
    """
    section = {
        "bundle": str(bundle.resolve()),
        "camera": CAMERA,
        "backend": backend,
        "threads": threads,
    }
    section |= {} if provider is None else {"provider": provider}
    with ExitStack() as stack:
        run_dir = stack.enter_context(temporary_run_dir())
        sends = {name: stack.enter_context(Publisher(run_dir, topic(name))) for name in SENT}
        hears = stack.enter_context(Subscriber(run_dir, [topic("chunk"), topic(report(PROCESS))]))
        parts = programs({PROCESS: section | WIDE_OPEN}, run_dir)
        group = stack.enter_context(Supervisor(parts, run_dir, restart=False))
        yield SocketPolicy(sends, hears, group.check, picture, instruction)


class SocketPolicy:
    """The other end of the process's sockets. Made by `socket_policy`."""

    def __init__(
        self,
        sends: dict[str, Publisher],
        hears: Subscriber,
        check: Callable[[], None],
        picture: np.ndarray,
        instruction: str,
    ) -> None:
        """`check` raises if the process has ended; it is called all the time."""
        self._task, self._state, self._frames = (sends[name] for name in SENT)
        self._hears = hears
        self._check = check
        self._picture = picture
        self._instruction = instruction
        self._started_ns = monotonic_ns()
        self._sent_ns: dict[int, int] = {}
        self.asked_again = 0
        """Frames beyond the first of a turn: a figure above 0 says that the machine was too busy to
        measure on.
        """
        self._back_ms: list[float] = []

    def connect(self) -> None:
        """Return when the process has answered a first time. Raises what `turn` raises."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self._report().state == "starting":
            self._listen(deadline, READY_TIMEOUT_S)
        self.turn(0)
        self.asked_again = 0
        self._back_ms.clear()

    def turn(self, turn: int) -> Times:
        """L3: publish a frame, wait for its chunk.

        Raises NoAnswerError, or ProcessEndedError with its last words.
        """
        first = self._frames.sent
        again = time.monotonic()
        deadline = again + ANSWER_TIMEOUT_S
        while (answer := self._answer(first)) is None:
            if time.monotonic() >= again:
                self._ask()
                again = time.monotonic() + ASK_AGAIN_S
            self._listen(deadline, ANSWER_TIMEOUT_S)
        self.asked_again += self._frames.sent - first - 1
        return {("L3", TOTAL): answer}

    def _ask(self) -> None:
        """Task and state first, so that the picture can be acted on; its time is that of its
        publishing.
        """
        now = monotonic_ns()
        self._task.send(
            Task(time_ns=now, episode=0, instruction=self._instruction, started_ns=self._started_ns)
        )
        self._state.send(JointState(time_ns=now, position=(0.0,) * 6, gripper=1.0))
        time.sleep(SETTLE_S)
        now = monotonic_ns()
        self._sent_ns[self._frames.sent] = now
        self._frames.send(Frame(CAMERA, now, self._picture))

    def _listen(self, deadline: float, timeout_s: float) -> None:
        """Take in what comes next."""
        self._check()
        if time.monotonic() > deadline:
            said = self._report()
            found = f"it is {said.state}{f' ({said.reason})' if said.reason else ''}"
            raise NoAnswerError(
                f"expected an answer of the process '{PROCESS}' within {timeout_s:g} s; {found}"
            )
        self._hears.update(POLL_S)

    def _answer(self, first: int) -> float | None:
        """Milliseconds from a frame of this turn to its chunk, where one has just come."""
        now = monotonic_ns()
        heard = self._hears["chunk"]
        chunk = heard.message
        if not heard.updated or not isinstance(chunk, ActionChunk) or chunk.frame_sequence < first:
            return None
        self._back_ms.append((now - chunk.produced_ns) / NS_PER_MS)
        return (now - self._sent_ns[chunk.frame_sequence]) / NS_PER_MS

    def parts(self) -> dict[str, float]:
        """Where the time of L3 went [ms], by the process's own clocks: medians of all turns, also
        the first.
        """
        self._hears.update(REPORT_PERIOD_S + POLL_S)
        p50 = {name: summary.p50 for name, summary in self._report().latencies.items()}
        way = p50["travel"] + p50["pickup"]
        return {
            "frame out, and on its way": p50["travel"],
            "thread wakes, frame unpacked": p50["pickup"],
            "observation judged": max(0.0, p50["observation_age"] - way),
            "policy": p50["inference.total"],
            "chunk out, on its way, unpacked": float(np.median(self._back_ms)),
        }

    def _report(self) -> Report:
        message = self._hears[report(PROCESS)].message
        return (
            message
            if isinstance(message, Report)
            else Report(time_ns=0, process=PROCESS, state="starting")
        )
