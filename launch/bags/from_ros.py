"""A rosbag2 folder -> a recording, for `trim --calibration`, `export`, `inspect` and `replay`.

A bag that was made of a recording becomes that recording again, message by message. Of any other
one, images of the chosen topics, one JointState topic and an instruction are taken; times are those
of the headers, where they are of the bag's own clock. Knows bags and recordings.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from trimvla.launch.bags.bag_reader import BagMessage, read_bag
from trimvla.launch.bags.results import FromBagResult
from trimvla.launch.bags.robot_bag import RobotBag
from trimvla.launch.bags.topics import RECORDING, Facts, Line, chosen_cameras
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import UNKNOWN_AGE
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.wire import FrameHeader
from trimvla.runtime.errors import ConfigError, RecordingError, WireError
from trimvla.runtime.record.message_json import message_of
from trimvla.runtime.record.recording import RecordingWriter, partial
from trimvla.runtime.ros import cdr

BEFORE_NS = 3600 * 1_000_000_000  # our clock's zero, before the bag's first message
T = TypeVar("T")


def write_recording(
    bag: Path, out: Path, *, cameras: Sequence[str] = (), task: str | None = None
) -> FromBagResult:
    """Write the recording.

    Args:
        bag: the folder, or one MCAP file.
        out: the recording.
        cameras: `NAME=TOPIC` each; all topics with images by default.
        task: what the robot was to do; the bag's String on `/instruction` by default.

    Raises:
        ConfigError: no bag, a file at `out`, or topics that are not in the bag.
        RecordingError: a damaged bag.
    """
    cdr.types()
    first: BagMessage | None = None
    types: dict[str, str] = {}
    for message in read_bag(bag):
        first = first or message
        types.setdefault(message.topic, message.type)
    if first is None:
        raise RecordingError(f"{bag}: expected messages, got none")
    if first.topic == RECORDING:
        if cameras or task is not None:
            raise ConfigError(f"{bag}: a recording's own bag needs neither --cameras nor --task")
        return _restored(bag, out, first)
    images = [name for name, kind in types.items() if kind in (cdr.IMAGE, cdr.COMPRESSED)]
    chosen = chosen_cameras(images, cameras)
    robot = RobotBag(bag, chosen, types, task)
    with _recording(out) as stream:
        offset_ns = first.logged_ns - BEFORE_NS
        writer = RecordingWriter(stream, robot.facts(), offset_ns)
        robot.write(writer, offset_ns)
        writer.finish()
        if not robot.frames:
            raise ConfigError(f"{bag}: expected images that can be read, got none: {robot.words()}")
    return FromBagResult(
        ok=True,
        file=out,
        restored=False,
        frames=robot.frames,
        messages=robot.messages,
        cameras=chosen,
        unknown_age=robot.unknown_age,
        refused=dict(robot.refused),
    )


@contextmanager
def _recording(out: Path) -> Iterator[BinaryIO]:
    """A new file, which gets its name when it is whole. Raises ConfigError where one is there."""
    work = partial(out)
    for path in (out, work):
        if path.exists():
            raise ConfigError(f"expected no file at {path}, got one: move it or write elsewhere")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with work.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        work.rename(out)
    except OSError as error:
        raise RecordingError(f"recording '{work}': cannot be written: {error.strerror}") from None
    finally:
        work.unlink(missing_ok=True)


def _restored(bag: Path, out: Path, first: BagMessage) -> FromBagResult:
    """The recording that the bag was made of."""
    facts = dict(_decoded(bag, first, Facts).facts)
    try:
        offset_ns = int(facts.pop("utc_minus_monotonic_ns", ""))
    except ValueError:
        raise RecordingError(f"{bag}: expected the recording's clock in its facts") from None
    with _recording(out) as stream:
        restorer = _Restorer(bag, RecordingWriter(stream, facts, offset_ns), offset_ns)
        for message in read_bag(bag):
            if message.topic != RECORDING:
                restorer.add_image(message)
            elif restorer.begun:
                restorer.add_line(message)
            restorer.begun = True
        restorer.finish()
    return FromBagResult(
        ok=True,
        file=out,
        restored=True,
        frames=restorer.frames,
        messages=restorer.messages,
        cameras=restorer.cameras,
        unknown_age=restorer.unknown_age,
        refused={},
    )


class _Restorer:
    """Lines and pixels, put together again."""

    def __init__(self, bag: Path, writer: RecordingWriter, offset_ns: int) -> None:
        self._bag = bag
        self._writer = writer
        self._offset_ns = offset_ns
        self._waiting: dict[str, deque[tuple[Line, FrameHeader]]] = {}
        self.begun = False
        """Whether the facts, the first message, are behind."""
        self.frames = 0
        self.messages = 0
        self.unknown_age = 0
        self.cameras: dict[str, str] = {}

    def add_line(self, message: BagMessage) -> None:
        """A message, or an image's header, whose pixels follow."""
        line = _decoded(self._bag, message, Line)
        if line.header is not None:
            self._waiting.setdefault(line.image, deque()).append((line, line.header))
            return
        try:
            kind = topic(line.topic)
            parts = wire.encode(kind, message_of(kind, msgspec.json.decode(line.message)))
            self._writer.add(kind, message.logged_ns - self._offset_ns, parts)
        except (WireError, ConfigError, msgspec.DecodeError, RecursionError, ValueError) as error:
            raise RecordingError(f"{self._bag}: topic '{line.topic[:64]}': {error}") from None
        self.messages += 1

    def add_image(self, message: BagMessage) -> None:
        """Pixels, whose header came before."""
        waiting = self._waiting.get(message.topic)
        if not waiting:
            return  # a topic that shows what the lines hold
        line, header = waiting.popleft()
        if message.type not in (cdr.IMAGE, cdr.COMPRESSED):
            raise RecordingError(
                f"{self._bag}: expected images on '{message.topic}', got {message.type}"
            )
        try:
            pixels = bytes(cdr.decode(message.raw, message.type).data)
            kind = topic(line.topic)
            parts = [line.topic.encode(), msgspec.json.encode(header), pixels]
            wire.decode(kind, parts)  # whole: a bag's chunks may have no checksum
            self._writer.add(kind, message.logged_ns - self._offset_ns, parts)
        except (WireError, ConfigError) as error:
            raise RecordingError(f"{self._bag}: topic '{message.topic}': {error}") from None
        self.cameras[header.camera] = message.topic
        self.frames += 1
        self.unknown_age += header.timestamp_source == UNKNOWN_AGE

    def finish(self) -> None:
        """The end. Raises RecordingError where images are missing."""
        missing = sum(map(len, self._waiting.values()))
        if missing:
            raise RecordingError(f"{self._bag}: expected {missing} more images, got none")
        self._writer.finish()


def _decoded(bag: Path, message: BagMessage, kind: type[T]) -> T:
    """A line's JSON. Raises RecordingError."""
    try:
        return msgspec.json.decode(cdr.decode(message.raw, cdr.STRING).data, type=kind)
    except (WireError, msgspec.DecodeError, RecursionError, ValueError) as error:
        raise RecordingError(f"{bag}: topic '{RECORDING}': {error}") from None
