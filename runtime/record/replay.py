"""Recorded policy calls, done again: the same picture, instruction and noise must give the same
actions.

Knows recordings and anything that infers. On the backend that was recorded the actions are the same
bit for bit; elsewhere the differences are measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import ActionChunk, Frame
from trimvla.runtime.bus.topics import MIB
from trimvla.runtime.chunks.rtc import known_rows
from trimvla.runtime.errors import RecordingError
from trimvla.runtime.inference.policy import Known
from trimvla.runtime.inference.scheduler import PolicyLike
from trimvla.runtime.record.recording import Recording

MAX_CHUNK_BYTES = 128 * MIB  # of all chunks of a recording: hours, at a kilobyte a chunk
Key = tuple[int, int]
"""Sequence and capture time [ns] of a picture."""


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded policy call: what went in, and what came out."""

    frame: Frame
    chunk: ActionChunk
    before: ActionChunk | None = None
    """The chunk that guided it, if one did."""

    @property
    def known(self) -> Known | None:
        """What guided it."""
        if self.chunk.guidance is None or self.before is None:
            return None
        return Known(*known_rows(self.before, self.chunk.guidance))

    @property
    def actions(self) -> NDArray[np.float64]:
        """float64[H, D] as recorded."""
        return np.array(self.chunk.actions, np.float64)


@dataclass(frozen=True)
class Difference:
    """How far one repeated call is from the recorded one.

    `largest` is infinite where the shapes differ.
    """

    chunk: int
    episode: int
    frame: int
    largest: float
    row: int
    dimension: int


def compare(call: Call, actions: NDArray[np.float64]) -> Difference | None:
    """The largest difference in the robot's units; None where every bit is the same."""
    expected = call.actions
    chunk = call.chunk
    place = (chunk.sequence, chunk.episode, chunk.frame_sequence)
    if expected.shape != actions.shape:
        return Difference(*place, math.inf, 0, 0)
    if expected.tobytes() == actions.tobytes():
        return None
    apart = np.abs(expected - actions)
    apart[np.isnan(apart)] = math.inf
    row, dimension = np.unravel_index(np.argmax(apart), apart.shape)
    return Difference(*place, float(apart.max()), int(row), int(dimension))


class Calls:
    """The policy calls of a recording.

    Iterating reads the file once more; memory holds one picture at a time.
    """

    def __init__(self, recording: Recording) -> None:
        """Read all chunks; which of them can be repeated shows after iterating.

        Raises RecordingError.
        """
        self._recording = recording
        self._chunks: dict[Key, list[ActionChunk]] = {}
        self._said: dict[int, ActionChunk] = {}
        self._before: dict[int, ActionChunk] = {}
        """By the number of a chunk that was guided, the one that guided it."""
        self.count = 0
        self._mute: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        """Calls that could not be repeated, by reason, after iterating to the end."""
        held = 0
        for entry in recording.entries(lambda name: name == "chunk"):
            assert isinstance(entry.message, ActionChunk)
            held += len(msgspec.msgpack.encode(entry.message))
            if held > MAX_CHUNK_BYTES:
                raise RecordingError(
                    f"{recording.path}: expected at most {MAX_CHUNK_BYTES} bytes of chunks, got"
                    " more"
                )
            self._take(entry.message)

    def _take(self, chunk: ActionChunk) -> None:
        self.count += 1
        self._said[chunk.sequence] = chunk
        if chunk.guidance is not None and (why := self._find(chunk, chunk.guidance.chunk)):
            self._mute[why] += 1
            return
        if not chunk.seed or not chunk.instruction:
            self._mute["the chunk does not say its seed and instruction"] += 1
            return
        self._chunks.setdefault((chunk.frame_sequence, chunk.time_ns), []).append(chunk)

    def _find(self, chunk: ActionChunk, sequence: int) -> str:
        """Note which chunk guided this one; why not, if it cannot be found."""
        before = self._said.get(sequence)
        if before is None or before.episode != chunk.episode:
            early = self.count == 1 or sequence < min(self._said)
            return (
                f"the chunk that guided it is {'from before' if early else 'not in'} the recording"
            )
        guidance = chunk.guidance
        width = len(chunk.actions[0])
        rows = len(chunk.actions)
        sizes = (len(before.actions[0]), 0 if guidance is None else len(guidance.weights))
        if guidance is None or sizes != (width, rows) or guidance.shift > rows:
            return "its guidance does not fit the chunk that guided it"
        self._before[id(chunk)] = before
        return ""

    def __iter__(self) -> Iterator[Call]:
        waiting = dict(self._chunks)
        first_ns = None
        for entry in self._recording.entries(lambda name: name.endswith("/color")):
            frame = entry.message
            assert isinstance(frame, Frame)
            first_ns = frame.time_ns if first_ns is None else min(first_ns, frame.time_ns)
            for chunk in waiting.pop((frame.sequence, frame.time_ns), ()):
                yield Call(frame, chunk, self._before.get(id(chunk)))
        self.left_out = Counter(self._mute)
        for (_, time_ns), chunks in waiting.items():
            early = first_ns is not None and time_ns < first_ns
            why = (
                "its picture is from before the recording"
                if early
                else "its picture is not in the recording"
            )
            self.left_out[why] += len(chunks)


class Outcome(msgspec.Struct):
    """What a replay found."""

    calls: int = 0
    repeated: int = 0
    exact: int = 0
    worst: Difference | None = None
    left_out: dict[str, int] = {}

    def same(self, tolerance: float = 0.0) -> bool:
        """Whether every call that could be recorded whole was repeated with the same actions, and
        there was one.
        """
        lost = sum(
            count for why, count in self.left_out.items() if "before the recording" not in why
        )
        return (
            self.repeated > 0
            and not lost
            and (self.worst is None or self.worst.largest <= tolerance)
        )


def replay(
    recording: Recording, policy: PolicyLike, rungs: Mapping[str, PolicyLike] | None = None
) -> Outcome:
    """Repeat every recorded call, with the rung that made it, else with `policy`.

    Raises RecordingError for a damaged file, and what the policy raises.
    """
    calls = Calls(recording)
    outcome = Outcome(calls=calls.count)
    for call in calls:
        infers = (rungs or {}).get(call.chunk.rung, policy)
        result = infers.infer(
            call.frame.image, call.chunk.instruction, seed=call.chunk.seed, known=call.known
        )
        difference = compare(call, np.asarray(result.actions, np.float64))
        outcome.repeated += 1
        outcome.exact += difference is None
        if difference is not None and (
            outcome.worst is None or difference.largest > outcome.worst.largest
        ):
            outcome.worst = difference
    outcome.left_out = dict(calls.left_out)
    return outcome
