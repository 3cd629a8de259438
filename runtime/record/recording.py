"""A recording: one MCAP file of what travelled between the processes.

Writes it and reads it; knows no socket.

Every message is JSON with a schema (`foxglove.py`), so that the file opens in Foxglove. Times in
the file are of the wall clock, for people; times inside the messages stay those of the robot's
monotonic clock. While it is written the file is called `<name>.partial`; its real name means that
it is complete. What was flushed before a crash can be read from the partial file. Facts about the
run stand in the file as metadata. A file may come from anybody: whatever is wrong with it is a
RecordingError, in bounded time and memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import mcap.writer
import msgspec
from mcap.exceptions import EndOfFile
from mcap.records import Channel, Metadata
from mcap.records import Message as Record

from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import Frame, Message
from trimvla.runtime.bus.topics import Topic, topic
from trimvla.runtime.clock import wall_offset_ns
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record import foxglove
from trimvla.runtime.record.foxglove import ChangeLog, Picture
from trimvla.runtime.record.mcap_records import read_records
from trimvla.runtime.record.message_json import packed, unpacked

PARTIAL = ".partial"
CHUNK_BYTES = 4 * 1024 * 1024  # compressed together; a crash loses the last one
LOG_TOPIC = "log"
FACTS = "trimvla"  # name of the metadata record
SEQUENCES = 1 << 32  # MCAP counts messages in 32 bits
MAX_FACT = 1 << 20  # letters
T = TypeVar("T")


def partial(path: Path) -> Path:
    """What a recording is called until it is complete."""
    return path.with_name(path.name + PARTIAL)


class RecordingWriter:
    """Appends messages as they come off the wire."""

    def __init__(
        self, stream: BinaryIO, facts: Mapping[str, str], offset_ns: int | None = None
    ) -> None:
        """Begin a file.

        Args:
            stream: open for writing, at its start.
            facts: what a replay must know of the run; text by name.
            offset_ns: from monotonic to wall-clock time; now's by default.

        Raises OSError.
        """
        self._offset_ns = wall_offset_ns() if offset_ns is None else offset_ns
        self._writer = mcap.writer.Writer(stream, chunk_size=CHUNK_BYTES)
        self._writer.start(library="trimvla")
        self._writer.add_metadata(FACTS, {**facts, "utc_minus_monotonic_ns": str(self._offset_ns)})
        self._channels: dict[str, int] = {}
        self._schemas: dict[type, int] = {}
        self._change_log = ChangeLog()

    def add(self, topic: Topic, received_ns: int, parts: list[bytes]) -> int:
        """Append what came on a topic at `received_ns`; returns its sequence number.

        Raises WireError for what is no message of the topic, OSError.
        """
        if topic.type is Frame:
            return self._add_frame(topic, received_ns, parts)
        message = wire.decode(topic, parts)
        assert isinstance(message, Message)
        self._append(topic.name, message, message.sequence, received_ns, message.time_ns)
        line = self._change_log.line_for(message, self._offset_ns + message.time_ns)
        if line is not None:
            self._append(LOG_TOPIC, line, 0, received_ns, message.time_ns)
        return message.sequence

    def _add_frame(self, topic: Topic, received_ns: int, parts: list[bytes]) -> int:
        header = wire.decode_header(topic, parts)
        captured_ns = header.captured_monotonic_ns
        picture = foxglove.as_picture(header, parts[2], self._offset_ns + captured_ns)
        self._append(topic.name, picture, header.sequence, received_ns, captured_ns)
        return header.sequence

    def _append(
        self, name: str, body: msgspec.Struct, sequence: int, received_ns: int, time_ns: int
    ) -> None:
        self._writer.add_message(
            self._channel(name, type(body)),
            log_time=max(0, self._offset_ns + received_ns),
            data=msgspec.json.encode(body),
            publish_time=max(0, self._offset_ns + time_ns),
            sequence=sequence % SEQUENCES,
        )

    def _channel(self, name: str, kind: type[msgspec.Struct]) -> int:
        key = f"{name} {kind.__name__}"  # a camera may change its codec, and with it the schema
        if key not in self._channels:
            if kind not in self._schemas:
                text = msgspec.json.encode(foxglove.schema(kind))
                self._schemas[kind] = self._writer.register_schema(
                    foxglove.schema_name(kind), "jsonschema", text
                )
            self._channels[key] = self._writer.register_channel(name, "json", self._schemas[kind])
        return self._channels[key]

    def flush(self) -> None:
        """Hand everything so far to the operating system: it survives the end of this process.

        Raises OSError.
        """
        self._writer.flush()

    def finish(self) -> None:
        """Write the index. The stream stays open. Raises OSError."""
        self._writer.finish()


@dataclass(frozen=True)
class Entry:
    """One recorded message. `logged_ns` is when it was received, on the wall clock."""

    topic: str
    logged_ns: int
    message: Message | Frame


@dataclass(frozen=True)
class PackedEntry:
    """The same; an image is as it was sent."""

    topic: Topic
    logged_ns: int
    content: Message | Picture


class Recording:
    """A file that was recorded, complete or cut off.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.runtime import JointState, Recording, topic
        >>> from trimvla.runtime.bus.wire import encode
        >>> from trimvla.runtime.record.recording import RecordingWriter
        >>> path = Path(tempfile.mkdtemp()) / "run.mcap"
        >>> states = topic("robot/state")
        >>> state = JointState(time_ns=5, position=(0.3, 0.1), gripper=1.0)
        >>> with path.open("wb") as stream:  # `trimvla run --record run.mcap` writes such a file
        ...     writer = RecordingWriter(stream, {"task": "pick up the red cube"})
        ...     _ = writer.add(states, 5, encode(states, state))
        ...     writer.finish()
        >>> recording = Recording(path)
        >>> recording.facts["task"]
        'pick up the red cube'
        >>> [(entry.topic, entry.message.position) for entry in recording]
        [('robot/state', (0.3, 0.1))]
    """

    def __init__(self, path: Path) -> None:
        """Look at its beginning. Raises RecordingError if it is no recording of ours."""
        self.path = path
        self.facts = self._read_facts()
        self.cut_off = False
        """Whether the last reading ended before the file's own end mark."""

    def __iter__(self) -> Iterator[Entry]:
        return self.entries()

    def entries(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Entry]:
        """Messages of the wanted topics in the order in which they were received; images are
        unpacked.

        Topics that we do not know are passed over. Raises RecordingError for a damaged file or
        message.
        """
        for kind, record in self._known(wanted):
            try:
                yield Entry(kind.name, record.log_time, unpacked(kind, record.data))
            except RecordingError as error:
                raise RecordingError(f"{self.path}: {error}") from None

    def packed_entries(
        self, wanted: Callable[[str], bool] = lambda name: True
    ) -> Iterator[PackedEntry]:
        """The same; images stay as they were sent."""
        for kind, record in self._known(wanted):
            try:
                yield PackedEntry(kind, record.log_time, packed(kind, record.data))
            except RecordingError as error:
                raise RecordingError(f"{self.path}: {error}") from None

    def _known(self, wanted: Callable[[str], bool]) -> Iterator[tuple[Topic, Record]]:
        """Records of our topics."""
        for channel, record in self._records(wanted):
            try:
                kind = topic(channel.topic)
            except ConfigError:
                continue
            yield kind, record

    def _records(self, wanted: Callable[[str], bool]) -> Iterator[tuple[Channel, Record]]:
        channels: dict[int, Channel] = {}
        for record in self._all_records():
            if isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Record):
                channel = channels.get(record.channel_id)
                if channel is None:
                    raise RecordingError(
                        f"{self.path}: expected a channel {record.channel_id}, got none"
                    )
                if wanted(channel.topic):
                    yield channel, record

    def _all_records(self) -> Iterator[object]:
        """Every record, to the end or to where the file was cut off."""
        self.cut_off = False
        try:
            with open_file(self.path) as stream:
                yield from read_records(stream, self.path.stat().st_size)
        except RecordingError as error:
            raise RecordingError(f"{self.path}: {error}") from None
        except EndOfFile:
            self.cut_off = True
        except OSError as error:
            raise RecordingError(f"{self.path}: {error.strerror}") from None
        # of the format, its checksums and three decompressors, without a common base
        except Exception as error:
            raise RecordingError(f"{self.path}: expected a recording, got: {error}") from None

    def _read_facts(self) -> dict[str, str]:
        for record in self._all_records():
            if isinstance(record, Metadata) and record.name == FACTS:
                return record.metadata
            if isinstance(record, Record):
                break
        raise RecordingError(
            f"{self.path}: expected a recording of trimvla, got a file without its facts"
        )


def open_file(path: Path) -> BinaryIO:
    """A file to read from; what is no file, such as a pipe, would keep us waiting.

    Raises OSError, RecordingError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise RecordingError("expected a recording, got something else than a file")


def fact(recording: Recording, name: str, kind: type[T]) -> T | None:
    """One fact of this type, decoded from JSON; None where it was not recorded.

    Raises RecordingError.
    """
    text = recording.facts.get(name)
    if text is None:
        return None
    if len(text) > MAX_FACT:
        raise RecordingError(
            f"{recording.path}: expected at most {MAX_FACT} letters for the fact '{name}'"
        )
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise RecordingError(f"{recording.path}: fact '{name}': {error}") from None
