"""The task of a run, repeated: silence means that nobody wants it any more.

Knows the topic `task` alone.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.runtime.bus.messages import Task
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns, to_ns

TASK_PERIOD_S = 0.2


class TaskSender:
    """Repeats the task of a run.

    Without one, the topic is left to whoever gives the system its tasks.
    """

    def __init__(self, sentence: str | None, run_dir: Path) -> None:
        """Raises ConfigError where there is a sentence and another process publishes tasks."""
        self._sentence = sentence or ""
        self._publisher = None if sentence is None else Publisher(run_dir, topic("task"))
        self._began_ns: int | None = None
        self._sent_ns = 0

    def repeat(self) -> None:
        """Send the task if it is time; it begins with the first."""
        now = monotonic_ns()
        if self._publisher is None or now - self._sent_ns < to_ns(TASK_PERIOD_S):
            return
        self._began_ns = now if self._began_ns is None else self._began_ns
        self._publisher.send(as_task(self._sentence, self._began_ns))
        self._sent_ns = now

    def close(self) -> None:
        """Free the topic."""
        if self._publisher is not None:
            self._publisher.close()


def as_task(sentence: str, began_ns: int) -> Task:
    """The task that this run is for; it is repeated, because silence means that nobody wants it any
    more.
    """
    return Task(
        time_ns=monotonic_ns(), episode=1, instruction=sentence, started_ns=began_ns, seed=0
    )
