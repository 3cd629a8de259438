"""Names of ROS topics for ours and back, and what else a bag of a recording holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from trimvla.runtime.bus.topics import CAMERA_NAME
from trimvla.runtime.bus.wire import FrameHeader
from trimvla.runtime.errors import ConfigError

RECORDING = "/trimvla/recording"
"""std_msgs/String: `Facts`, then every message of ours as `Line`."""
JOINT_STATES = "/joint_states"
COMMANDS = "/trimvla/command"
INSTRUCTION = "/instruction"
TRANSPORTS = ("compressed", "image_raw", "image_color", "image_rect", "image", "color", "rgb")
"""Last parts of a topic that do not name its camera."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of ours; of an image its header, with the topic of the pixels that follow."""

    topic: str
    message: msgspec.Raw = msgspec.Raw(b"null")
    header: FrameHeader | None = None
    image: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the recording knew of its run."""

    facts: dict[str, str]


def image_topic(camera: str, compressed: bool) -> str:
    """The ROS topic of one of our cameras."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", camera)
    name = f"camera_{name}" if name[0].isdigit() else name
    return f"/{name}/image_raw/compressed" if compressed else f"/{name}/image_raw"


def camera_of(topic: str) -> str:
    """What a camera is called whose images come on a ROS topic, as `/robot/wrist/image_raw`."""
    parts = [part for part in topic.split("/") if part]
    while len(parts) > 1 and parts[-1] in TRANSPORTS:
        parts.pop()
    return re.sub(r"[^A-Za-z0-9_.-]", "_", parts[-1] if parts else "camera")[:32]


def chosen_cameras(found: Iterable[str], words: Iterable[str]) -> dict[str, str]:
    """Our camera -> ROS topic, of the topics with images, by `NAME=TOPIC`, else all of them.

    Raises ConfigError where a name is none, a topic is not there, or two have one name.
    """
    topics = list(found)
    chosen: dict[str, str] = {}
    pairs = [word.partition("=")[::2] for word in words]
    for name, topic in pairs or [(camera_of(topic), topic) for topic in topics]:
        if topic not in topics:
            raise ConfigError(
                f"expected NAME=TOPIC for --cameras, TOPIC one of {topics}, got {name}={topic}"
            )
        if name in chosen or not CAMERA_NAME.fullmatch(name):
            words_ = f"got {name!r} for '{topic}'" + (
                f" and '{chosen[name]}'" if name in chosen else ""
            )
            raise ConfigError(f"expected a name of its own for each camera, {words_}: --cameras")
        chosen[name] = topic
    return chosen
