"""A bag that a robot recorded, message by message as ours: images, joint states, instruction.

A message that cannot be read is left out and counted, with its reason; joints are found by the
names of the first state. Knows ROS messages and ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from trimvla.launch.bags.bag_reader import BagMessage, read_bag
from trimvla.launch.bags.topics import INSTRUCTION, JOINT_STATES
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import MAX_DIM, UNKNOWN_AGE, Frame, JointState, Message, Task
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.bus.wire import FrameHeader
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.errors import ConfigError, WireError
from trimvla.runtime.image_codec import measure
from trimvla.runtime.record.recording import RecordingWriter
from trimvla.runtime.ros import cdr
from trimvla.runtime.ros.images import packed_kind, read_image
from trimvla.runtime.ros.joints import positions_of

MOST_LATE_NS = 10 * NS_PER_S  # between a stamp and its message in the bag, on one clock
AHEAD_NS = 2_000_000


class RobotBag:
    """What is taken of a bag."""

    def __init__(
        self, bag: Path, cameras: Mapping[str, str], types: Mapping[str, str], task: str | None
    ) -> None:
        """Choose.

        Args:
            bag: the folder.
            cameras: ours -> topic.
            types: of all topics of the bag.
            task: the instruction; the bag's own by default.

        Raises ConfigError where two topics could be the joint states.
        """
        self._bag = bag
        self._cameras = {name: camera for camera, name in cameras.items()}
        self._joints = _joint_topic(bag, types)
        self._task = task
        self._names: tuple[str, ...] = ()
        self._sequences: Counter[str] = Counter()
        self.frames = 0
        self.messages = 0
        self.unknown_age = 0
        self.refused: Counter[str] = Counter()
        """Why messages were left out."""

    def facts(self) -> dict[str, str]:
        """What the recording knows of its run: which cameras a policy would look through."""
        names = list(self._cameras.values())
        several = {"cameras": {name: name for name in names}}
        one = {"camera": names[0]} if len(names) == 1 else several
        return {"system": json.dumps({"policy": one}), "source": f"rosbag2 {self._bag.name}"}

    def words(self) -> str:
        """Why messages were left out."""
        parts = [f"{count}: {reason}" for reason, count in self.refused.items()]
        return "; ".join(parts) or "there is none"

    def write(self, writer: RecordingWriter, offset_ns: int) -> None:
        """Append everything; `offset_ns` leads from the recording's clock to the bag's."""
        self._writer = writer
        self._offset_ns = offset_ns
        for message in read_bag(self._bag):
            if self._task is not None and not self._sequences["task"]:
                self._add_task(message, self._task)
            try:
                self._add(message)
            except WireError as error:
                self.refused[f"{message.topic}: {error}"[:200]] += 1

    def _add(self, message: BagMessage) -> None:
        if message.topic in self._cameras:
            self._add_image(message, self._cameras[message.topic])
        elif message.topic == self._joints:
            self._add_joints(message)
        elif message.topic == INSTRUCTION and message.type == cdr.STRING and self._task is None:
            self._add_task(message, cdr.decode(message.raw, cdr.STRING).data.strip())

    def _add_image(self, message: BagMessage, camera: str) -> None:
        """Raw pixels as RGB, files as they are."""
        content = cdr.decode(message.raw, message.type)
        time_ns = self._time(message, cdr.stamp_ns(content))
        kind = topic(color(camera))
        number = self._sequences[camera]
        source = UNKNOWN_AGE if time_ns is None else "driver"
        utc_ns = 0 if time_ns is None else time_ns + self._offset_ns
        if message.type == cdr.IMAGE:
            image = read_image(content)
            frame = Frame(
                camera=camera,
                time_ns=time_ns or 0,
                image=image,
                sequence=number,
                utc_ns=utc_ns,
                timestamp_source=source,
            )
            parts = wire.encode(kind, frame)
        else:
            data = bytes(np.asarray(content.data))
            codec = packed_kind(content)
            width, height = measure(data, codec)
            header = FrameHeader(
                camera=camera,
                stream="color",
                sequence=number,
                captured_monotonic_ns=time_ns or 0,
                captured_utc_ns=utc_ns,
                timestamp_source=source,
                width=width,
                height=height,
                pixel_format="bgr8",
                codec=codec,
                payload_size=len(data),
            )
            parts = [kind.name.encode(), msgspec.json.encode(header), data]
            wire.decode(kind, parts)  # whole, so that nobody meets a damaged one later
        self._writer.add(kind, message.logged_ns - self._offset_ns, parts)
        self._sequences[camera] += 1
        self.frames += 1
        self.unknown_age += time_ns is None

    def _add_joints(self, message: BagMessage) -> None:
        content = cdr.decode(message.raw, cdr.JOINTS)
        names = self._names or tuple(content.name)
        if len(names) > MAX_DIM:
            raise WireError(f"expected at most {MAX_DIM} joints, got {len(names)}")
        position = positions_of(content, names)
        time_ns = self._time(message, cdr.stamp_ns(content))
        if time_ns is None:
            raise WireError("expected a 'header.stamp' of the bag's clock")
        self._names = names
        state = JointState(time_ns=time_ns, position=position, gripper=1.0, names=names)
        self._add_message("robot/state", message, state)

    def _add_task(self, message: BagMessage, text: str) -> None:
        begun = max(0, message.logged_ns - self._offset_ns)
        try:
            task = Task(
                time_ns=begun,
                episode=self._sequences["task"] + 1,
                instruction=text,
                active=bool(text),
                started_ns=begun,
            )
            self._add_message("task", message, task)
        except msgspec.ValidationError as error:
            raise WireError(str(error)) from None

    def _add_message(self, name: str, message: BagMessage, ours: Message) -> None:
        kind = topic(name)
        numbered = msgspec.structs.replace(ours, sequence=self._sequences[name])
        self._writer.add(kind, message.logged_ns - self._offset_ns, wire.encode(kind, numbered))
        self._sequences[name] += 1
        self.messages += 1

    def _time(self, message: BagMessage, stamp_ns: int) -> int | None:
        """A stamp on the recording's clock; None for none, and for one of another clock."""
        late_ns = message.logged_ns - stamp_ns
        if not -AHEAD_NS <= late_ns <= MOST_LATE_NS:
            return None
        time_ns = min(stamp_ns, message.logged_ns) - self._offset_ns
        return time_ns if time_ns > 0 else None


def _joint_topic(bag: Path, types: Mapping[str, str]) -> str:
    """The topic of joint states; empty where there is none."""
    found = [name for name, kind in types.items() if kind == cdr.JOINTS]
    if JOINT_STATES in found or len(found) <= 1:
        return JOINT_STATES if JOINT_STATES in found else "".join(found)
    raise ConfigError(f"{bag}: expected one topic of joint states, or {JOINT_STATES}, got {found}")
