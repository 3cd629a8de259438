"""The protocols of openpi's and vla-eval's clients over a websocket, without the websocket: pure.

A conversation receives one message at a time and returns what to send back at once, or a question
for the policy. Knows frames and their order; not connections, and not how an answer comes about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from trimvla.runtime.clock import instant, monotonic_ns
from trimvla.runtime.errors import ObservationError, WireError
from trimvla.runtime.servers.packing import LazyMap, open_map, pack
from trimvla.runtime.servers.query import Query, briefly, normalise
from trimvla.runtime.servers.service import Answer
from trimvla.runtime.servers.sessions import Session

PROTOCOL_VERSION = 1  # vla-eval's
KINDS = ("hello", "observation", "episode_start", "episode_end", "error")


class Conversation(Protocol):
    """One client's protocol.

    It receives a message, and makes an answer or a refusal, before it receives the next.
    """

    def greeting(self) -> bytes | None:
        """What is sent before anything is received."""
        ...

    def receive(self, raw: bytes | str, session: Session) -> Query | bytes | None:
        """A question, or what to send at once, if anything.

        Raises WireError, ObservationError or BusyError.
        """
        ...

    def answer(self, answer: Answer) -> bytes:
        """What to send."""
        ...

    def refusal(self, error: Exception) -> bytes | str:
        """What to send where there is no answer."""
        ...


class Openpi:
    """Observations in, action chunks out; the server sends first."""

    def __init__(self, metadata: Mapping[str, Any], camera: str = "") -> None:
        self._metadata = metadata
        self._camera = camera
        self._previous_ms = 0.0

    def greeting(self) -> bytes:
        """The metadata."""
        return pack({**self._metadata, "monotonic_ns": monotonic_ns()}, "openpi")

    def receive(self, raw: bytes | str, session: Session) -> Query:
        """Every message is an observation."""
        return normalise(_opened(raw), self._camera, cameras=self._metadata.get("cameras", ()))

    def answer(self, answer: Answer) -> bytes:
        """`actions` float32[H, D], and `server_timing` as openpi's own server sends it."""
        timing = {"infer_ms": answer.info["infer_ms"], "prev_total_ms": self._previous_ms}
        self._previous_ms = answer.info["queue_ms"] + answer.info["infer_ms"]
        return pack({"actions": answer.actions, "server_timing": timing, **answer.info}, "openpi")

    def refusal(self, error: Exception) -> str:
        """Text where the client expects bytes: that is how it knows an error."""
        return str(error)


class VlaEval:
    """vla-eval's envelopes `{type, payload, seq, timestamp}`: one row a step, or the whole
    chunk.
    """

    def __init__(
        self, metadata: Mapping[str, Any], camera: str = "", *, whole_chunks: bool = False
    ) -> None:
        self._metadata = metadata
        self._camera = camera
        self._whole_chunks = whole_chunks
        self._seq = 0

    def greeting(self) -> None:
        """None: the client sends first."""

    def receive(self, raw: bytes | str, session: Session) -> Query | bytes | None:
        """HELLO is answered, an episode's start resets the session, an observation is a
        question.
        """
        kind, payload, self._seq = envelope(raw)
        if kind == "observation":
            return normalise(payload, self._camera, cameras=self._metadata.get("cameras", ()))
        if kind == "hello":
            return self._wrap("hello", self._hello(payload))
        if kind == "episode_start":
            session.reset(_episode_seed(payload))
        return None

    def answer(self, answer: Answer) -> bytes:
        """`actions` float32[D], or float32[H, D]."""
        return self._wrap(
            "action",
            {"actions": answer.actions if self._whole_chunks else answer.row, **answer.info},
        )

    def refusal(self, error: Exception) -> bytes:
        """An ERROR envelope."""
        return self._wrap("error", {"error": str(error)})

    def _wrap(self, kind: str, payload: Mapping[str, Any]) -> bytes:
        """An envelope with the number of the message that it answers."""
        return pack(
            {"type": kind, "payload": payload, "seq": self._seq, "timestamp": instant().wall / 1e9},
            "vla-eval",
        )

    def _hello(self, payload: Mapping[Any, Any]) -> dict[str, object]:
        version = payload.get("protocol_version")
        if type(version) is not int or version != PROTOCOL_VERSION:
            raise ObservationError(
                f"expected {PROTOCOL_VERSION} for 'protocol_version', got {briefly(version)}"
            )
        images = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
        language = {"name": "language", "dims": 0, "format": "language"}
        actions = {"name": "raw", "dims": self._metadata["action_dim"], "format": "raw"}
        return {
            "harness_version": self._metadata["server"],
            "protocol_version": PROTOCOL_VERSION,
            "model_server": self._metadata["policy"],
            "capabilities": {},
            "action_spec": {"actions": actions},
            "observation_spec": {"image": images, "language": language},
            "metadata": {**self._metadata, "monotonic_ns": monotonic_ns()},
        }


def envelope(raw: bytes | str) -> tuple[str, Mapping[Any, Any], int]:
    """Type, payload and number of a vla-eval message. Raises WireError."""
    message = _opened(raw)
    kind = message.plain("type", str, "")
    seq = message.plain("seq", int, -1)
    if kind not in KINDS:
        raise WireError(f"expected one of {', '.join(KINDS)} for 'type', got {kind[:40]!r}")
    if not 0 <= seq < 2**63:
        raise WireError(f"expected an integer from 0 on for 'seq', got {seq}")
    payload = message.get("payload")
    if not isinstance(payload, Mapping):
        raise WireError(f"expected a map for 'payload', got {briefly(payload)}")
    return kind, payload, seq


def _opened(raw: bytes | str) -> LazyMap:
    if isinstance(raw, str):
        raise WireError("expected a binary message, got text")
    return open_map(raw)


def _episode_seed(payload: Mapping[Any, Any]) -> int | None:
    """A task's seed, where it has one."""
    task = payload.get("task")
    seed = task.get("seed") if isinstance(task, Mapping) else None
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**63):
        raise ObservationError(
            f"expected an integer from 0 to 2^63 - 1 for 'task.seed', got {briefly(seed)}"
        )
    return seed
