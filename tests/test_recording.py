"""The file: every message comes back as it went in, Foxglove can read its schemas, and a crash
costs the last chunk.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")
from mcap.reader import make_reader

from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Episode,
    Frame,
    JointState,
    Message,
    Report,
    SimState,
    Summary,
    Task,
)
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.errors import RecordingError, WireError
from trimvla.runtime.record import foxglove
from trimvla.runtime.record.recording import FACTS, LOG_TOPIC, Recording, RecordingWriter

OFFSET_NS = 1_700_000_000_000_000_000
CHUNK = ActionChunk(
    time_ns=5,
    sequence=3,
    episode=1,
    actions=((0.1, 1 / 3), (1e-300, -0.0)),
    control_hz=5.0,
    valid_rows=1,
    produced_ns=9,
    frame_sequence=2,
    seed=(0, 1, 2),
    instruction="pick up the red cube",
)
MESSAGES: dict[str, Message] = {
    "task": Task(
        time_ns=1, episode=1, instruction="stack", started_ns=1, seed=4, options={"variant": "all"}
    ),
    "robot/state": JointState(time_ns=2, position=(0.1, -0.25), gripper=1.0),
    "sim/state": SimState(time_ns=2, episode=1, step=3, scene={"cubes": [1, 2]}, qpos=(0.5,)),
    "chunk": CHUNK,
    "command": Command(
        time_ns=6, episode=1, kind="hold", action=(0.0, 1.0), reason="robot/state is silent"
    ),
    "episode": Episode(
        time_ns=7, episode=1, instruction="stack", step=2, done=False, success=False
    ),
    "policy/report": Report(
        time_ns=8, process="policy", state="running", latencies={"a": Summary(1, 1.0, 2.0, 3.0)}
    ),
}
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def packed(name: str, message: Message | Frame, codec: wire.Codec = "raw_bgr8") -> list[bytes]:
    return wire.encode(topic(name), message, codec)


def picture(sequence: int, codec: wire.Codec = "raw_bgr8") -> list[bytes]:
    return packed("front/color", Frame("front", 100 + sequence, PICTURE, sequence), codec)


def write(path: Path, items: list[tuple[str, list[bytes]]]) -> Path:
    with path.open("wb") as stream:
        writer = RecordingWriter(stream, {"versions": '{"numpy":"2"}'}, OFFSET_NS)
        for number, (name, parts) in enumerate(items):
            writer.add(topic(name), 1000 + number, parts)
        writer.finish()
    return path


def test_every_message_comes_back_as_it_went_in(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.mcap", [(name, packed(name, message)) for name, message in MESSAGES.items()]
    )
    recording = Recording(path)
    entries = list(recording)
    assert {entry.topic: entry.message for entry in entries} == MESSAGES
    assert [entry.logged_ns for entry in entries] == [
        OFFSET_NS + 1000 + number for number in range(len(MESSAGES))
    ]
    assert recording.facts == {
        "versions": '{"numpy":"2"}',
        "utc_minus_monotonic_ns": str(OFFSET_NS),
    }
    assert not recording.cut_off


@pytest.mark.parametrize("codec", ["raw_bgr8", "raw_rgb8", "jpeg", "png"])
def test_pictures_have_the_pixels_that_the_policy_saw(codec: wire.Codec, tmp_path: Path) -> None:
    parts = picture(7, codec)
    seen = wire.decode(topic("front/color"), parts)
    (entry,) = Recording(write(tmp_path / "a.mcap", [("front/color", parts)]))
    assert isinstance(seen, Frame)
    assert isinstance(entry.message, Frame)
    np.testing.assert_array_equal(entry.message.image, seen.image)
    assert (entry.message.sequence, entry.message.time_ns, entry.message.camera) == (
        7,
        107,
        "front",
    )


def test_numbers_that_json_lacks_come_back_as_nan(tmp_path: Path) -> None:
    broken = Command(time_ns=1, episode=1, kind="action", action=(math.inf, 0.5, math.nan))
    (entry,) = Recording(write(tmp_path / "a.mcap", [("command", packed("command", broken))]))
    assert isinstance(entry.message, Command)
    np.testing.assert_array_equal(entry.message.action, [math.nan, 0.5, math.nan])
    assert entry.message.captured_ns is None


def viewer_reads(part: dict[str, Any]) -> bool:
    """The rules of Foxglove's parser, mcap-support/parseJsonSchema.ts: what it throws at makes the
    topic unreadable.
    """
    if part.get("type") != "object" or "properties" not in part:
        return False
    return all(viewer_reads_field(field) for field in part["properties"].values())


def viewer_reads_field(field: dict[str, Any]) -> bool:
    kind = field.get("type")
    if kind == "object":
        return viewer_reads(field)
    if kind == "array":
        items = field["items"]
        return (
            viewer_reads(items)
            if items.get("type") == "object"
            else items.get("type") in foxglove.SCALARS
        )
    return kind in foxglove.SCALARS and field.get("contentEncoding") in (None, "base64")


KINDS = [*map(type, MESSAGES.values()), foxglove.RawImage, foxglove.CompressedImage, foxglove.Log]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_viewer_can_read_every_schema(kind) -> None:
    schema = foxglove.schema(kind)
    assert viewer_reads(schema), schema
    assert "additionalProperties" not in json.dumps(schema), (
        "fields that are not described are allowed"
    )


def test_pictures_and_log_lines_have_the_fields_that_the_viewer_asks_for(tmp_path: Path) -> None:
    items = [("front/color", picture(0)), ("front/color", picture(1, "jpeg"))]
    items += [
        ("command", packed("command", MESSAGES["command"])),
        ("policy/report", packed_report("running")),
    ]
    path = write(tmp_path / "a.mcap", items)
    with path.open("rb") as stream:
        found = {
            schema.name: json.loads(message.data)
            for schema, _, message in make_reader(stream).iter_messages()
            if schema
        }
    raw, small, line = (
        found[f"foxglove.{name}"] for name in ("RawImage", "CompressedImage", "Log")
    )
    assert (raw["width"], raw["height"], raw["encoding"], raw["step"]) == (8, 6, "bgr8", 24)
    assert raw["timestamp"] == {"sec": 1_700_000_000, "nsec": 100}
    assert (small["format"], small["frame_id"]) == ("jpeg", "front")
    assert set(line) == {"timestamp", "level", "message", "name", "file", "line"}


def packed_report(state: str, reason: str = "") -> list[bytes]:
    return packed("policy/report", Report(time_ns=8, process="policy", state=state, reason=reason))


def test_decisions_are_told_once(tmp_path: Path) -> None:
    said = [
        ("running", ""),
        ("running", ""),
        ("refusing", "too old"),
        ("refusing", "too old"),
        ("running", ""),
    ]
    path = write(tmp_path / "a.mcap", [("policy/report", packed_report(*words)) for words in said])
    with path.open("rb") as stream:
        lines = [
            json.loads(message.data)
            for _, _, message in make_reader(stream).iter_messages(topics=[LOG_TOPIC])
        ]
    assert [line["message"] for line in lines] == ["running", "refusing: too old", "running"]
    assert [line["level"] for line in lines] == [foxglove.INFO, foxglove.WARNING, foxglove.INFO]


def test_a_complete_file_has_an_index(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [("front/color", picture(number)) for number in range(5)])
    with path.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == 5


def test_a_file_that_was_cut_off_is_read_up_to_its_last_whole_chunk(tmp_path: Path) -> None:
    sink = io.BytesIO()
    writer = RecordingWriter(sink, {}, OFFSET_NS)
    for number in range(6):
        writer.add(topic("front/color"), number, picture(number))
        if number % 2:
            writer.flush()
    whole = sink.getvalue()
    path = tmp_path / "cut.mcap.partial"
    path.write_bytes(whole)
    recording = Recording(path)
    assert [entry.message.sequence for entry in recording] == list(range(6))
    assert recording.cut_off
    path.write_bytes(whole[:-200])  # inside the last chunk
    assert [entry.message.sequence for entry in Recording(path)] == list(range(4))


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [("front/color", picture(number)) for number in range(5)])
    content = bytearray(path.read_bytes())
    middle = content.index(FACTS.encode()) + 400
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"a\.mcap: expected a recording, got"):
        list(Recording(path))


@pytest.mark.parametrize("content", [b"", b"no recording at all, only words", b"\x89MCAP0\r\n"])
def test_something_else_is_no_recording(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="expected a recording"):
        Recording(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "none.mcap")


def test_what_is_no_message_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.mcap").open("wb") as stream:
        writer = RecordingWriter(stream, {}, OFFSET_NS)
        for name, parts in (
            ("chunk", [b"chunk", b"\xc1"]),
            ("front/color", [b"front/color", b"{}", b""]),
        ):
            with pytest.raises(WireError, match=name):
                writer.add(topic(name), 0, parts)
