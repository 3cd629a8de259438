"""A recording -> a rosbag2 folder that `ros2 bag play`, Foxglove and PlotJuggler read.

    <camera>/color   /<camera>/image_raw, Image, or /<camera>/image_raw/compressed, CompressedImage
    robot/state      /joint_states, JointState; the gripper as one more joint, 0 to 1
    command          /trimvla/command, Float64MultiArray
    task             /instruction, String, where it changes
    everything       /trimvla/recording, String: JSON, of which the recording can be made again

Stamps are wall-clock times of capture; an image of unknown age has none. Knows recordings, and
rosbags' writer.
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from trimvla.launch.bags.results import BagResult
from trimvla.launch.bags.topics import (
    COMMANDS,
    INSTRUCTION,
    JOINT_STATES,
    RECORDING,
    Facts,
    Line,
    image_topic,
)
from trimvla.runtime.bus.messages import UNKNOWN_AGE, Command, JointState, Message, Task
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record.foxglove import Picture
from trimvla.runtime.record.recording import PackedEntry, Recording
from trimvla.runtime.ros import cdr
from trimvla.runtime.ros.images import compressed_message, image_message
from trimvla.runtime.ros.joints import array

GRIPPER = "gripper"


class BagWriter:
    """A bag with one MCAP file; as a context it leaves a whole one, or none."""

    def __init__(self, out: Path) -> None:
        """Begin. Raises ConfigError where something lies at `out`, or rosbags is not installed."""
        cdr.types()
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

        if out.exists():
            raise ConfigError(f"expected nothing at {out}, got a file or folder")
        self._out = out
        self._work = out.with_name(f"{out.name}.partial")
        shutil.rmtree(self._work, ignore_errors=True)
        # version 8 is what Humble's readers understand
        self._writer = Writer(self._work / out.name, version=8, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, tuple[str, Any]] = {}
        self.counts: Counter[str] = Counter()
        """Messages by topic."""

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.counts:
                self._writer.close()
                (self._work / self._out.name).rename(self._out)
            else:
                with suppress(Exception):  # the first error is the one to be shown
                    self._writer.__exit__(kind, error, None)
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def add(self, topic: str, kind: str, time_ns: int, message: object) -> None:
        """Append. Raises RecordingError where a topic changes its type."""
        if topic not in self._connections:
            made = self._writer.add_connection(topic, kind, typestore=cdr.types())
            self._connections[topic] = (kind, made)
        known, connection = self._connections[topic]
        if known != kind:
            raise RecordingError(f"expected {known} on ROS topic '{topic}', got {kind} too")
        self._writer.write(connection, max(0, time_ns), cdr.encode(message, kind))
        self.counts[topic] += 1


def write_bag(recording: Recording, out: Path) -> BagResult:
    """Write the bag.

    Raises:
        RecordingError: no recording, a damaged one, or two cameras of one name in ROS.
        ConfigError: something lies at `out`, or the package rosbags is not installed.
    """
    offset_ns = offset_of(recording)
    with BagWriter(out) as bag:
        translator = _Translator(bag, offset_ns)
        for entry in recording.packed_entries():
            if not bag.counts:
                facts = Facts(facts=recording.facts)
                translator.add_text(RECORDING, entry.logged_ns, msgspec.json.encode(facts).decode())
            translator.add(entry)
        if not bag.counts:
            raise RecordingError(f"{recording.path}: expected messages, got none")
    return BagResult(ok=True, folder=out, topics=dict(bag.counts))


def offset_of(recording: Recording) -> int:
    """From the recording's clock to the wall clock [ns]. Raises RecordingError."""
    text = recording.facts.get("utc_minus_monotonic_ns", "")
    try:
        return int(text)
    except ValueError:
        raise RecordingError(
            f"{recording.path}: expected a number for the fact 'utc_minus_monotonic_ns', got"
            f" {text[:40]!r}"
        ) from None


class _Translator:
    """Each message of ours as those of ROS."""

    def __init__(self, bag: BagWriter, offset_ns: int) -> None:
        self._bag = bag
        self._offset_ns = offset_ns
        self._cameras: dict[str, str] = {}
        self._instruction: str | None = None

    def add(self, entry: PackedEntry) -> None:
        """Append one message."""
        content = entry.content
        if not isinstance(content, Message):
            self._add_image(entry, content)
            return
        message = msgspec.Raw(msgspec.json.encode(content))
        self._add_line(entry.logged_ns, Line(topic=entry.topic.name, message=message))
        if isinstance(content, JointState):
            stamp_ns = self._offset_ns + content.time_ns
            self._bag.add(JOINT_STATES, cdr.JOINTS, entry.logged_ns, joints(content, stamp_ns))
        elif isinstance(content, Command):
            self._bag.add(COMMANDS, cdr.ARRAY, entry.logged_ns, array(content.action))
        elif isinstance(content, Task):
            text = content.instruction if content.active else ""
            if text != self._instruction:
                self._instruction = text
                self.add_text(INSTRUCTION, entry.logged_ns, text)

    def _add_image(self, entry: PackedEntry, picture: Picture) -> None:
        header = picture.header
        compressed = header.codec in ("jpeg", "png")
        topic = image_topic(header.camera, compressed)
        if self._cameras.setdefault(topic, header.camera) != header.camera:
            both = [self._cameras[topic], header.camera]
            raise RecordingError(f"expected cameras with names of their own in ROS, got {both}")
        self._add_line(entry.logged_ns, Line(topic=entry.topic.name, header=header, image=topic))
        known = header.timestamp_source != UNKNOWN_AGE
        stamp_ns = max(0, self._offset_ns + header.captured_monotonic_ns) if known else 0
        size = (header.width, header.height)
        if compressed:
            message = compressed_message(picture.data, header.codec, stamp_ns, header.camera)
            self._bag.add(topic, cdr.COMPRESSED, entry.logged_ns, message)
        else:
            coding = header.pixel_format
            message = image_message(picture.data, coding, size, stamp_ns, header.camera)
            self._bag.add(topic, cdr.IMAGE, entry.logged_ns, message)

    def _add_line(self, time_ns: int, line: Line) -> None:
        self.add_text(RECORDING, time_ns, msgspec.json.encode(line).decode())

    def add_text(self, topic: str, time_ns: int, text: str) -> None:
        """Append a String."""
        self._bag.add(topic, cdr.STRING, time_ns, cdr.make(cdr.STRING, data=text))


def joints(state: JointState, stamp_ns: int) -> object:
    """A state of ours as sensor_msgs/JointState, the gripper behind its positions."""
    names = list(state.names) or [f"joint_{place}" for place in range(len(state.position))]
    values = list(state.position)
    if GRIPPER not in names:
        names.append(GRIPPER)
        values.append(state.gripper)
    none = np.zeros(0)
    return cdr.make(
        cdr.JOINTS,
        header=cdr.header(max(0, stamp_ns)),
        name=names,
        position=np.array(values, np.float64),
        velocity=none,
        effort=none,
    )
