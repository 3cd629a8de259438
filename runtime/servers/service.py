"""A policy for several clients: one thread infers, in fair order, from a bounded queue.

Knows no protocol.

Every session has at most one question under way, so first come, first served is fair, and a
client that floods is refused without costing the others anything. A question that is too old, or
past its deadline, when its turn comes is refused.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from trimvla.runtime.bus.messages import SCHEMA_VERSION
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns, to_ns
from trimvla.runtime.errors import (
    BackendError,
    BackendUnavailableError,
    BusyError,
    ConfigError,
    StaleError,
    TrimvlaError,
    WireError,
)
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.log_limit import LimitedLog
from trimvla.runtime.ports import check_port
from trimvla.runtime.servers.decoding import Decoders
from trimvla.runtime.servers.query import Query
from trimvla.runtime.servers.sessions import Session, Sessions

limited = LimitedLog(logging.getLogger(__name__))


@dataclass(frozen=True)
class ServiceConfig:
    """How a policy is shared."""

    seed: int = 0
    """Of the noise, where a client sets none."""
    camera: str = ""
    """The image that the policy looks at, where a client sends several."""
    votes: int = 1
    """Chunks that vote on the row of a step, for clients that want one row a step (CogACT's
    adaptive ensemble).
    """
    max_age_s: float = 0.5
    """Of a question that has its image's capture time."""
    max_sessions: int = 64
    max_waiting: int = 16
    """Questions in the queue."""
    idle_s: float = 300.0
    """A session without a question for so long is forgotten; of `max_sessions` the longest idle,
    where another comes.
    """

    def __post_init__(self) -> None:
        if self.seed < 0 or min(self.votes, self.max_sessions, self.max_waiting) < 1:
            raise ConfigError(
                "expected 'seed' >= 0 and 'votes', 'max_sessions' and 'max_waiting' >= 1"
            )
        if not (self.max_age_s > 0 and self.idle_s > 0):
            raise ConfigError("expected numbers above 0 for 'max_age_s' and 'idle_s'")


@dataclass(frozen=True)
class Place:
    """Where a server listens and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    token: str = field(default="", repr=False)
    allow_plain: bool = False
    """It may be reached from other hosts, unencrypted."""

    def __post_init__(self) -> None:
        check_port(self.port, "a server")


@dataclass(frozen=True, eq=False)
class Answer:
    """What one question gave."""

    actions: np.ndarray
    """float32[H, D], un-normalised; the first row is for the moment of the image."""
    row: np.ndarray
    """float32[D]: what a client that executes one row a step executes now."""
    info: dict[str, Any]
    """The query's own numbers, the noise's seed, and times."""


class Service:
    """One policy, many sessions. Closing it ends its thread and refuses what waits."""

    def __init__(
        self,
        policy: Policy,
        config: ServiceConfig = ServiceConfig(),
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_lost` is called once, in another thread, when the backend is gone for good; `lost`
        is the reason.

        Raises ConfigError for more votes than a chunk has rows, or a camera for a policy that looks
        through several.
        """
        action = policy.manifest.action
        if config.votes > action.horizon:
            raise ConfigError(
                f"expected at most {action.horizon} votes, the rows of a chunk, got {config.votes}"
            )
        names = policy.manifest.images.names
        if config.camera and len(names) > 1:
            raise ConfigError(
                f"expected no 'camera' for a policy that looks through {list(names)}: clients send"
                f" each by its name, got {config.camera!r}"
            )
        self.config = config
        self.sessions = Sessions(config.max_sessions, config.idle_s, config.votes)
        self.counters: Counter[str] = Counter()
        self.lost: BackendUnavailableError | None = None
        self._on_lost = on_lost
        self.metadata = describe(policy)
        self.cameras = names
        self.decoders = Decoders()
        self._policy = policy
        self._jobs: deque[_Job] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def ask(self, session: Session, query: Query) -> Future[Answer]:
        """Queue a question.

        Raises BusyError for a session's second one at a time, and where the queue is full.
        """
        with self._news:
            if session.busy:
                raise BusyError("expected one question at a time, got another before the answer")
            if self._closing or len(self._jobs) >= self.config.max_waiting:
                raise BusyError(
                    f"expected at most {self.config.max_waiting} waiting questions; try again later"
                )
            session.busy = True
            job = _Job(session, query, monotonic_ns(), Future())
            self._jobs.append(job)
            self._news.notify()
            return job.future

    def close(self) -> None:
        """End."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()
        self.decoders.close()
        while self._jobs:
            job = self._jobs.popleft()
            job.session.busy = False
            job.future.set_exception(BusyError("the server is closing"))

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refuse(self, error: Exception) -> TrimvlaError:
        """Count a client's fault; returns the error that is sent to it, without our internals."""
        if isinstance(error, TrimvlaError):
            self.counters["malformed" if isinstance(error, WireError) else "refused"] += 1
            return error
        self.counters["failed"] += 1
        limited.exception(type(error), "a request failed: %s", error)
        return BackendError(
            "expected a request that can be read, got an internal error; see the server's log"
        )

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closing or self._jobs)
                if self._closing:
                    return
                job = self._jobs.popleft()
            self._settle(job)

    def _settle(self, job: _Job) -> None:
        """Whatever happens, there is an outcome and the thread lives on."""
        outcome: Answer | Exception
        try:
            outcome = self._answer(job)
            self.counters["answered"] += 1
        except TrimvlaError as error:
            outcome = error
            self.counters["refused"] += 1
            if isinstance(error, BackendUnavailableError) and self.lost is None:
                self.lost = error
                self._on_lost()
        except Exception as error:  # a client receives no internals
            limited.exception(type(error), "a question failed: %s", error)
            outcome = BackendError(
                "expected an answer of the policy, got an internal error; see the server's log"
            )
            self.counters["failed"] += 1
        job.session.busy = False
        if job.future.set_running_or_notify_cancel():
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    def _answer(self, job: _Job) -> Answer:
        query = job.query
        session = job.session
        began_ns = monotonic_ns()
        self._check_time(query, began_ns)
        seed = session.noise(self.config.seed, query.seed)
        result = self._policy.infer(query.observation, seed=seed)
        done_ns = monotonic_ns()
        info = {
            "schema_version": SCHEMA_VERSION,
            "seq": query.seq,
            "t_capture_ns": query.t_capture_ns,
            "t_received_ns": job.received_ns,
            "t_done_ns": done_ns,
            "episode": session.episode,
            "step": session.step,
            "seed": list(seed),
            "queue_ms": (began_ns - job.received_ns) / NS_PER_MS,
            "infer_ms": (done_ns - began_ns) / NS_PER_MS,
        }
        return Answer(
            result.actions.astype(np.float32), session.vote(result.actions, query.instruction), info
        )

    def _check_time(self, query: Query, now_ns: int) -> None:
        """Raise StaleError for what is too late, or from the future."""
        if query.deadline_ns is not None and now_ns > query.deadline_ns:
            raise StaleError(
                f"expected a 'deadline_ns' to come, got one {_ms(now_ns - query.deadline_ns)}"
                " ms ago"
            )
        if query.t_capture_ns is None:
            return
        age_ns = now_ns - query.t_capture_ns
        if age_ns < 0:
            raise StaleError(
                f"expected a past 't_capture_ns', got one {_ms(-age_ns)} ms ahead of the server's"
                " clock"
            )
        if age_ns > to_ns(self.config.max_age_s):
            limit = f"at most {self.config.max_age_s * 1e3:.0f} ms of age by 't_capture_ns'"
            raise StaleError(f"expected {limit}, got {_ms(age_ns)} ms")


@dataclass(frozen=True, eq=False)
class _Job:
    session: Session
    query: Query
    received_ns: int
    future: Future[Answer]


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / NS_PER_MS:.0f}"


def describe(policy: Policy) -> dict[str, object]:
    """What a client must know of the actions, as plain data."""
    action = policy.manifest.action
    height, width = policy.manifest.images.shape
    try:
        release = version("trimvla")
    except PackageNotFoundError:
        release = policy.manifest.trimvla_version
    return {
        "schema_version": SCHEMA_VERSION,
        "server": f"trimvla {release}",
        "policy": policy.manifest.name,
        "horizon": action.horizon,
        "action_dim": action.dim,
        "control_hz": action.control_hz,
        "action_kinds": list(action.kinds),
        "image_size": height if height == width else [height, width],
        "cameras": list(policy.manifest.images.names),
        "state_dim": 0 if policy.manifest.state is None else policy.manifest.state.dim,
    }
