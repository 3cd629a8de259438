"""Recorded policy calls, done again: the same image, instruction and noise must give the same
actions.

Knows recordings and anything that infers. On the backend that was recorded the actions are the same
bit for bit; elsewhere the differences are measured.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import ActionChunk, Frame
from trimvla.runtime.bus.topics import MIB
from trimvla.runtime.chunks.rtc import known_rows
from trimvla.runtime.errors import RecordingError
from trimvla.runtime.inference.policy_like import Known, PolicyLike
from trimvla.runtime.preprocess.observation import ONLY, Observation
from trimvla.runtime.record.recording import Recording

MAX_CHUNK_BYTES = 128 * MIB  # of all chunks of a recording: hours, at a kilobyte a chunk
MAX_WAITING = 64  # images that wait for the others of their calls
Key = tuple[str, int, int]
"""Camera, sequence and capture time [ns] of an image; no camera for chunks that name only a
frame of their only one.
"""


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded policy call: what went in, and what came out."""

    frame: Frame
    """Of the only camera, or of the first of several."""
    chunk: ActionChunk
    before: ActionChunk | None = None
    """The chunk that guided it, if one did."""
    frames: Mapping[str, Frame] = field(default_factory=dict)
    """By the policy's name of the camera, where it looks through several."""

    @property
    def observation(self) -> Observation:
        """What the policy saw."""
        frames = self.frames or {ONLY: self.frame}
        state = np.array(self.chunk.state) if self.chunk.state else None
        images = {view: frame.image for view, frame in frames.items()}
        return Observation(images, self.chunk.instruction, state)

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

    Iterating reads the file once more; memory holds one image at a time.
    """

    def __init__(self, recording: Recording) -> None:
        """Read all chunks; which of them can be repeated shows after iterating. Raises
        RecordingError.
        """
        self._recording = recording
        self._chunks: dict[Key, list[ActionChunk]] = {}
        """By each image that they were made from."""
        self._by_sequence: dict[int, ActionChunk] = {}
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
                    f"{recording.path}: expected at most {MAX_CHUNK_BYTES} bytes of chunks, "
                    "got more"
                )
            self._take(entry.message)

    def _take(self, chunk: ActionChunk) -> None:
        self.count += 1
        self._by_sequence[chunk.sequence] = chunk
        if chunk.guidance is not None and (why := self._find(chunk, chunk.guidance.chunk)):
            self._mute[why] += 1
            return
        if not chunk.seed or not chunk.instruction:
            self._mute["the chunk has no seed or no instruction"] += 1
            return
        for key in dict.fromkeys(keys_of(chunk)):  # one camera may serve two of the policy's
            self._chunks.setdefault(key, []).append(chunk)

    def _find(self, chunk: ActionChunk, sequence: int) -> str:
        """Note which chunk guided this one; why not, if it cannot be found."""
        before = self._by_sequence.get(sequence)
        if before is None or before.episode != chunk.episode:
            early = self.count == 1 or sequence < min(self._by_sequence)
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
        gathering = Gathering(self._chunks)
        first_ns: int | None = None
        for entry in self._recording.entries(lambda name: name.endswith("/color")):
            frame = entry.message
            assert isinstance(frame, Frame)
            first_ns = frame.time_ns if first_ns is None else min(first_ns, frame.time_ns)
            for chunk, frames in gathering.add(frame):
                views = frames if chunk.frames else {}
                yield Call(next(iter(frames.values())), chunk, self._before.get(id(chunk)), views)
        self.left_out = Counter(self._mute)
        for chunk in gathering.incomplete():
            early = first_ns is not None and chunk.time_ns < first_ns
            where = "from before the recording" if early else "not in the recording"
            self.left_out[f"its image is {where}"] += 1


def keys_of(chunk: ActionChunk) -> list[Key]:
    """Every image that a chunk was made from."""
    if not chunk.frames:
        return [("", chunk.frame_sequence, chunk.time_ns)]
    return [(frame.camera, frame.sequence, frame.time_ns) for frame in chunk.frames]


class Gathering:
    """Brings together the images of each call, as they come; at most `MAX_WAITING` of them wait."""

    def __init__(self, chunks: Mapping[Key, Sequence[ActionChunk]]) -> None:
        """`chunks`: by each image that they were made from."""
        self._chunks = {key: list(made) for key, made in chunks.items()}
        self._open = {id(chunk): chunk for made in chunks.values() for chunk in made}
        self._needed = Counter(key for chunk in self._open.values() for key in set(keys_of(chunk)))
        self._waiting: OrderedDict[Key, Frame] = OrderedDict()

    def add(self, frame: Frame) -> Iterator[tuple[ActionChunk, dict[str, Frame]]]:
        """The calls that this image completes, with their images by the policy's names of the
        cameras.
        """
        for key in (
            ("", frame.sequence, frame.time_ns),
            (frame.camera, frame.sequence, frame.time_ns),
        ):
            for chunk in self._chunks.pop(key, ()):
                if not chunk.frames:
                    del self._open[id(chunk)]
                    yield chunk, {ONLY: frame}
                    continue
                self._waiting[key] = frame
                found = [self._waiting.get(other) for other in keys_of(chunk)]
                frames = [one for one in found if one is not None]
                if len(frames) == len(found):
                    self._close(chunk)
                    yield (
                        chunk,
                        {view.view: one for view, one in zip(chunk.frames, frames, strict=True)},
                    )
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)

    def incomplete(self) -> list[ActionChunk]:
        """Chunks whose images have not all come."""
        return list(self._open.values())

    def _close(self, chunk: ActionChunk) -> None:
        """Let go of the chunk, and of the images that no other one waits for."""
        del self._open[id(chunk)]
        for key in set(keys_of(chunk)):
            self._needed[key] -= 1
            if not self._needed[key]:
                self._waiting.pop(key, None)


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
        result = infers.infer(call.observation, seed=call.chunk.seed, known=call.known)
        difference = compare(call, np.asarray(result.actions, np.float64))
        outcome.repeated += 1
        outcome.exact += difference is None
        if difference is not None and (
            outcome.worst is None or difference.largest > outcome.worst.largest
        ):
            outcome.worst = difference
    outcome.left_out = dict(calls.left_out)
    return outcome
