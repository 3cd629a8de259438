"""One client of a running system: publishes, repeats the task, receives every process's reports.

Everybody who talks to a system does so through this class: `run`, `demo`, `load`, `bench`,
`faults`, `operator` and tests. Knows run directories, topics and reports; not what a message is
for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec

from trimvla.runtime.bus.inputs import Input
from trimvla.runtime.bus.messages import Frame, Message, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import Topic, report, topic
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import TrimvlaError

TASK_PERIOD_S = 0.2  # a task is repeated: silence means that nobody wants it any more
TURN_S = 0.05  # one wait for messages


class NoAnswerError(TrimvlaError):
    """A running system did not do in time what was expected of it."""


class SystemClient:
    """The other end of a running system's sockets. For one thread."""

    def __init__(
        self,
        run_dir: Path,
        *,
        sends: Iterable[str] = (),
        receives: Iterable[str | Topic] = (),
        processes: Iterable[str] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Bind and connect.

        Args:
            run_dir: the system's.
            sends: topics that are published from here on.
            receives: topics that are received; a `Topic` for a queue of another depth.
            processes: whose reports are received.
            check: called at every turn; raises where a process has ended.

        Raises:
            ConfigError: a topic has a publisher already, or the run directory is not trusted.
        """
        self.run_dir = run_dir
        self.processes = list(processes)
        self.task: Task | None = None
        """Published every `TASK_PERIOD_S` with the time of its sending; None: nobody wants
        anything."""
        self._check = check
        self._task_ns = 0
        self._publishers: dict[str, Publisher] = {}
        topics = [one if isinstance(one, Topic) else topic(one) for one in receives]
        topics += [topic(report(name)) for name in self.processes]
        with ExitStack() as stack:
            self._stack = stack
            for name in sends:
                self.open(name)
            self._inputs = stack.enter_context(Subscriber(run_dir, topics))
            self._stack = stack.pop_all()

    def __enter__(self) -> SystemClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Input:
        """What came on a topic."""
        return self._inputs[name]

    def close(self) -> None:
        """Close the sockets; what is on its way is handed over."""
        self._stack.close()

    def open(self, name: str) -> None:
        """Become the publisher of one more topic. Raises ConfigError where it has one."""
        self._publishers[name] = self._stack.enter_context(Publisher(self.run_dir, topic(name)))

    def send(self, name: str, message: Message | Frame) -> int:
        """Publish; the message's sequence number."""
        publisher = self._publishers[name]
        publisher.send(message)
        return publisher.sent - 1

    def begin(self, task: Task | None) -> None:
        """Publish another task with the next turn, and repeat it from then on; None: none."""
        if task is not None and "task" not in self._publishers:
            self.open("task")
        self.task = task
        self._task_ns = 0

    def turn(self, wait_s: float = TURN_S) -> None:
        """Check the processes, repeat the task if due, receive. Raises what `check` raises."""
        self._check()
        self.repeat_task()
        self._inputs.update(wait_s)

    def receive(self, wait_s: float = 0.0) -> None:
        """Receive alone, such as the last messages of processes that end."""
        self._inputs.update(wait_s)

    def repeat_task(self) -> None:
        """Publish the task if it is due."""
        now_ns = monotonic_ns()
        if self.task is not None and now_ns - self._task_ns >= to_ns(TASK_PERIOD_S):
            self._task_ns = now_ns
            self.send("task", msgspec.structs.replace(self.task, time_ns=now_ns))

    def until(
        self,
        done: Callable[[], bool],
        timeout_s: float,
        what: str,
        turn: Callable[[], object] | None = None,
    ) -> None:
        """Take turns until `done`.

        Raises NoAnswerError that names `what` was expected and every process's state.
        """
        if not wait_until(done, timeout_s, turn or self.turn):
            raise NoAnswerError(f"expected {what} within {timeout_s:g} s; {self.states()}")

    def wait(self, seconds: float) -> None:
        """Take turns for a while."""
        wait_until(lambda: False, seconds, self.turn)

    def receive_for(self, seconds: float) -> None:
        """Receive for a while, whatever became of the processes."""
        wait_until(lambda: False, seconds, lambda: self.receive(TURN_S))

    def report(self, process: str) -> Report:
        """A process's newest report; an empty one, `starting`, before the first."""
        message = self._inputs[report(process)].message
        if isinstance(message, Report):
            return message
        return Report(time_ns=0, process=process, state="starting")

    def last_report(self, process: str) -> Report:
        """The report of a process that has just ended, once it has come in; see `report`."""
        self._inputs.wait_for(report(process), timeout_s=1.0)
        self.receive(0.2)
        return self.report(process)

    def reports(self) -> dict[str, Report]:
        """The newest report of every process that has sent one."""
        found = {name: self._inputs[report(name)].message for name in self.processes}
        return {name: message for name, message in found.items() if isinstance(message, Report)}

    def states(self) -> str:
        """Every process's state with its reason, in words."""
        reports = [self.report(name) for name in self.processes]
        return ", ".join(
            f"{r.process} is {r.state}{f' ({r.reason})' if r.reason else ''}" for r in reports
        )


def wait_until(done: Callable[[], bool], timeout_s: float, turn: Callable[[], object]) -> bool:
    """Take turns until it is done; whether it was, in time. It is called before the first turn and
    after each."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        turn()
    return True


def new_task(instruction: str, episode: int = 1, *, seed: int = 0) -> Task:
    """A task that begins now: images from before are worthless for it."""
    now_ns = monotonic_ns()
    return Task(
        time_ns=now_ns, episode=episode, instruction=instruction, started_ns=now_ns, seed=seed
    )
