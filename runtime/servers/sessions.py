"""What a policy server remembers of each client, and of nobody else.

Knows episodes, noise and votes; not sockets.

A session's actions depend on its own questions alone: its noise is drawn from the server's seed,
its episode and its step, so that it gets the same actions whoever else is being served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from trimvla.runtime.chunks.ensemble import AdaptiveEnsemble
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import BusyError


@dataclass(eq=False)
class Session:
    """One client. Used by one question at a time: the server takes no second one while `busy`."""

    client: Hashable
    ensemble: AdaptiveEnsemble
    episode: int = 0
    step: int = 0
    """Questions answered in this episode."""
    seed: int | None = None
    """Of this episode's noise, where the client set one."""
    instruction: str | None = None
    """Of the chunks that vote."""
    busy: bool = False
    used_ns: int = field(default_factory=monotonic_ns)

    def reset(self, seed: int | None = None) -> None:
        """Begin another episode. Raises BusyError while a question is being answered."""
        if self.busy:
            raise BusyError(
                "expected a reset between two questions, got one while a question is being answered"
            )
        self.episode = self.episode + 1
        self.step = 0
        self.seed = seed
        self.ensemble.reset()

    def noise(self, server_seed: int, seed: int | None) -> tuple[int, ...]:
        """The seed of this step's noise: the question's own, else the episode's, else the
        server's.
        """
        if seed is not None:
            return (seed,)
        return (
            (self.seed, self.step)
            if self.seed is not None
            else (server_seed, self.episode, self.step)
        )

    def vote(self, actions: np.ndarray, instruction: str) -> np.ndarray:
        """Take this step's chunk float[H, D]; the row float32[D] that this step executes.

        Chunks for another instruction have no vote.
        """
        if instruction != self.instruction:
            self.ensemble.reset()
        self.instruction = instruction
        self.step += 1
        return self.ensemble.step(actions).astype(np.float32)


class Sessions:
    """All clients, at most so many: for a new one the longest idle is forgotten, never one in use.

    For several threads.

    A client's end is not always seen, so that an evaluation that connects anew for every episode
    would otherwise be locked out by its own past.
    """

    def __init__(
        self, most: int, idle_s: float, votes: int, now: Callable[[], int] = monotonic_ns
    ) -> None:
        self._most = most
        self._idle_ns = to_ns(idle_s)
        self._votes = votes
        self._now = now
        self._table: dict[Hashable, Session] = {}
        self._lock = threading.Lock()
        self.expired = 0
        """Sessions that were forgotten, for their silence or for another client."""

    def __len__(self) -> int:
        return len(self._table)

    def of(self, client: Hashable) -> Session:
        """This client's session, a new one at its first question.

        Raises BusyError where all of too many are in use.
        """
        with self._lock:
            now = self._now()
            self._expire(now)
            session = self._table.get(client)
            if session is None:
                self._make_room()
                session = self._table[client] = Session(client, AdaptiveEnsemble(self._votes))
            session.used_ns = now
            return session

    def forget(self, client: Hashable) -> None:
        """The client is gone."""
        with self._lock:
            self._table.pop(client, None)

    def _make_room(self) -> None:
        if len(self._table) < self._most:
            return
        idle = [session for session in self._table.values() if not session.busy]
        if not idle:
            raise BusyError(
                f"expected at most {self._most} clients with a question at a time; try again later"
            )
        del self._table[min(idle, key=lambda session: session.used_ns).client]
        self.expired += 1

    def _expire(self, now: int) -> None:
        old = [
            key
            for key, it in self._table.items()
            if now - it.used_ns > self._idle_ns and not it.busy
        ]
        for key in old:
            del self._table[key]
        self.expired += len(old)
