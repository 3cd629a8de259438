"""Messages as JSON that Foxglove shows: its own schemas for images and log lines, and ours where
it has none.

Images stay as they were sent: no encoder runs, and unpacking gives the pixels that the policy
saw. Knows forms; no file and no socket. Schemas: https://docs.foxglove.dev/docs/sdk/schemas.
"""

from __future__ import annotations

from typing import Any

import msgspec

from trimvla.runtime.bus.messages import Command, Frame, Message, Report
from trimvla.runtime.bus.wire import FrameHeader
from trimvla.runtime.clock import NS_PER_S

# levels of foxglove.Log
INFO = 2
WARNING = 3
SCALARS = ("boolean", "string", "number", "integer")


class Time(msgspec.Struct, frozen=True):
    """foxglove.Timestamp, since 1970."""

    sec: int
    nsec: int


class RawImage(msgspec.Struct, frozen=True):
    """foxglove.RawImage, and the header under which the image travelled."""

    timestamp: Time
    frame_id: str
    width: int
    height: int
    encoding: str
    step: int
    data: bytes
    header: FrameHeader


class CompressedImage(msgspec.Struct, frozen=True):
    """foxglove.CompressedImage, and the header under which the image travelled."""

    timestamp: Time
    frame_id: str
    format: str
    data: bytes
    header: FrameHeader


class Log(msgspec.Struct, frozen=True):
    """foxglove.Log."""

    timestamp: Time
    level: int
    message: str
    name: str
    file: str = ""
    line: int = 0


Picture = RawImage | CompressedImage


def as_time(utc_ns: int) -> Time:
    """[ns] since 1970."""
    return Time(*divmod(max(0, utc_ns), NS_PER_S))


def as_picture(header: FrameHeader, payload: bytes, utc_ns: int) -> Picture:
    """A camera frame's header and payload, captured at `utc_ns`."""
    time = as_time(utc_ns)
    if header.codec in ("jpeg", "png"):
        return CompressedImage(time, header.camera, header.codec, payload, header)
    step = 3 * header.width
    return RawImage(
        time, header.camera, header.width, header.height, header.pixel_format, step, payload, header
    )


def schema_name(kind: type[msgspec.Struct]) -> str:
    """Foxglove knows its own by name."""
    return (
        f"foxglove.{kind.__name__}"
        if kind in (RawImage, CompressedImage, Log)
        else f"trimvla.{kind.__name__}"
    )


def schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """A JSON schema that the viewer can read, true of every message of this type.

    Foxglove's parser (mcap-support/parseJsonSchema.ts) knows objects, scalars and flat arrays, and
    refuses the whole topic over anything else. Fields that it does not know are left undescribed;
    they are shown all the same.
    """
    whole = msgspec.json.schema(kind)
    described = _resolve(whole, whole)
    return {"title": schema_name(kind), **_object(described, whole)}


def _resolve(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    return whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def _object(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    fields = {
        name: _field(_resolve(field, whole), whole)
        for name, field in part.get("properties", {}).items()
    }
    return {
        "type": "object",
        "properties": {name: field for name, field in fields.items() if field},
    }


def _field(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Empty for what the viewer cannot read."""
    kind = part.get("type")
    if kind in SCALARS:
        encoding = {"contentEncoding": part["contentEncoding"]} if "contentEncoding" in part else {}
        return {"type": kind, **encoding}
    if "enum" in part and all(isinstance(value, str) for value in part["enum"]):
        return {"type": "string"}
    if kind == "object":
        return _object(part, whole)
    if kind == "array" and isinstance(part.get("items"), dict):
        items = _resolve(part["items"], whole)
        item = _field(items, whole) if items.get("type") in (*SCALARS, "object") else {}
        return {"type": "array", "items": item} if item else {}
    return {}


class ChangeLog:
    """Writes decisions as log lines: every change of a process's state, and every new reason behind
    a command.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, str]] = {}

    def line_for(self, message: Message | Frame, utc_ns: int) -> Log | None:
        """The log line of a message; None if nothing has changed."""
        if isinstance(message, Report):
            return self._line(message.process, message.state, message.reason, utc_ns)
        if isinstance(message, Command):
            return self._line("command", message.kind, message.reason, utc_ns)
        return None

    def _line(self, name: str, state: str, reason: str, utc_ns: int) -> Log | None:
        if self._last.get(name) == (state, reason):
            return None
        self._last[name] = (state, reason)
        return Log(
            as_time(utc_ns),
            WARNING if reason else INFO,
            f"{state}: {reason}" if reason else state,
            name,
        )
