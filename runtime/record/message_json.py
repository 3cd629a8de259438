"""A recorded message's JSON as what travelled; images packed or unpacked.

Through the wire's own checks: what could not have travelled is a RecordingError. Knows JSON and
messages; no file.
"""

from __future__ import annotations

import math
from typing import Any, cast

import msgspec

from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import Frame, Message
from trimvla.runtime.bus.topics import Topic
from trimvla.runtime.errors import RecordingError, WireError
from trimvla.runtime.record.foxglove import CompressedImage, Picture, RawImage

JSON_GROWTH = 8  # of a message: a number of 9 bytes becomes up to 25 letters, an escaped letter 6


def unpacked(kind: Topic, data: bytes) -> Message | Frame:
    """A record's JSON as the message that travelled. Raises RecordingError."""
    content = packed(kind, data)
    if isinstance(content, Message):
        return content
    try:
        return wire.decode(kind, parts_of(kind, content))  # as the policy got it
    except WireError as error:
        raise RecordingError(f"topic '{kind.name}': {error}") from None


def packed(kind: Topic, data: bytes) -> Message | Picture:
    """The same; an image stays as it was sent. Raises RecordingError."""
    most = JSON_GROWTH * kind.max_bytes
    if len(data) > most:
        raise RecordingError(f"topic '{kind.name}': expected at most {most} bytes, got {len(data)}")
    try:
        if kind.type is not Frame:
            return message_of(kind, msgspec.json.decode(data))
        form: type[Picture] = (
            RawImage if msgspec.json.decode(data, type=_Kind).encoding else CompressedImage
        )
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, WireError, RecursionError, ValueError, OverflowError) as error:
        raise RecordingError(f"topic '{kind.name}': {error}") from None


def parts_of(kind: Topic, picture: Picture) -> list[bytes]:
    """An image's record as the parts of the message that travelled."""
    return [kind.name.encode(), msgspec.json.encode(picture.header), picture.data]


def message_of(kind: Topic, content: object) -> Message:
    """Decoded JSON as a message of the topic.

    Raises WireError, msgspec.ValidationError, RecursionError, ValueError or OverflowError.
    """
    message = msgspec.convert(_with_nan(content), cast("type[Message]", kind.type))
    wire.encode(kind, message)  # it must be one that could have travelled
    return message


class _Kind(msgspec.Struct):
    encoding: str | None = None


def _with_nan(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """JSON has no NaN and no infinity: they were written as null, which no list of ours holds
    otherwise.
    """
    if isinstance(value, list):
        return [math.nan if item is None else _with_nan(item) for item in value]
    return (
        {key: _with_nan(item) for key, item in value.items()} if isinstance(value, dict) else value
    )
