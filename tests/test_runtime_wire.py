"""The wire format: round trips, the declared form of a frame, and bytes that are no message."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Frame,
    Message,
    Report,
    SimState,
    Summary,
    Task,
)
from trimvla.runtime.bus.topics import TOPICS, topic
from trimvla.runtime.bus.wire import Codec, decode, encode
from trimvla.runtime.errors import ConfigError, WireError

FRONT = topic("front/color")
CHUNK = ActionChunk(
    sequence=3,
    time_ns=5,
    episode=1,
    actions=((0.1, -0.2), (0.3, 0.4)),
    control_hz=5.0,
    valid_rows=2,
    produced_ns=9,
    frame_sequence=7,
    seed=(0, 7),
)
COMMAND = Command(
    sequence=2, time_ns=8, episode=1, kind="action", action=(0.1, 1.0), captured_ns=5, row=0
)
TASK = Task(
    time_ns=1,
    episode=1,
    instruction="pick up the red cube",
    started_ns=1,
    options={"variant": "default"},
)
MESSAGES = {
    "chunk": CHUNK,
    "command": COMMAND,
    "task": TASK,
    "sim/state": SimState(
        time_ns=1, episode=1, step=0, scene={"items": [{"x": 0.5}]}, qpos=(0.0, 1.5)
    ),
    "policy/report": Report(
        time_ns=1, process="policy", state="running", latencies={"a": Summary(1, 1.0, 2.0, 3.0)}
    ),
}


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def frame(**fields: object) -> Frame:
    return Frame(
        **{
            "camera": "front",
            "time_ns": 11,
            "utc_ns": 12,
            "sequence": 4,
            "image": picture(),
            **fields,
        }
    )


def altered(**fields: object) -> list[bytes]:
    """A valid frame with some header fields replaced, or left out where None."""
    name, header, payload = encode(FRONT, frame(), "raw_bgr8")
    merged = {**json.loads(header), **fields}
    return [name, json.dumps({k: v for k, v in merged.items() if v is not None}).encode(), payload]


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_come_back_as_they_went(name):
    assert decode(topic(name), encode(topic(name), MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("codec", ["raw_bgr8", "raw_rgb8", "png"])
def test_frames_come_back_exactly(codec):
    back = decode(FRONT, encode(FRONT, frame(), codec))
    assert isinstance(back, Frame)
    assert (back.image == picture()).all() and back.image.flags.c_contiguous
    assert (back.camera, back.sequence, back.time_ns, back.utc_ns) == ("front", 4, 11, 12)


def test_jpeg_frames_come_back_nearly():
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    back = decode(FRONT, encode(FRONT, frame(image=smooth), "jpeg"))
    assert isinstance(back, Frame)
    assert np.abs(back.image.astype(int) - smooth).max() <= 4


def test_a_frame_has_the_published_form():
    name, header, payload = encode(FRONT, frame(), "raw_bgr8")
    assert name == b"front/color" and len(payload) == 6 * 8 * 3
    assert payload[:3] == picture()[0, 0, ::-1].tobytes()
    assert json.loads(header) == {
        "schema_version": 1,
        "camera": "front",
        "stream": "color",
        "sequence": 4,
        "captured_monotonic_ns": 11,
        "captured_utc_ns": 12,
        "timestamp_source": "host",
        "width": 8,
        "height": 6,
        "pixel_format": "bgr8",
        "codec": "raw_bgr8",
        "payload_size": 144,
    }


def test_unknown_header_fields_are_passed_over():
    assert isinstance(decode(FRONT, altered(exposure_us=3)), Frame)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema_version": 2}, "expected schema_version 1, got 2"),
        ({"schema_version": None}, "schema_version"),
        ({"camera": "wrist"}, "expected 'front' for 'camera'"),
        ({"width": 7}, "expected 126 for 'payload_size', got 144"),
        ({"width": 0}, r"\$\.width"),
        ({"sequence": "4"}, r"\$\.sequence"),
        ({"sequence": 2**70}, r"\$\.sequence"),
        ({"captured_monotonic_ns": None}, "captured_monotonic_ns"),
        ({"codec": "pickle"}, r"\$\.codec"),
        ({"codec": "jpeg"}, "no jpeg image"),
        ({"codec": "raw_rgb8"}, "expected 'rgb8' for 'pixel_format'"),
    ],
)
def test_a_bad_header_names_its_field(fields, words):
    with pytest.raises(WireError, match=words):
        decode(FRONT, altered(**fields))


def test_a_picture_of_another_size_than_declared_is_not_unpacked():
    name, header, payload = encode(FRONT, frame(), "png")
    lying = json.dumps({**json.loads(header), "width": 4000, "height": 4000}).encode()
    with pytest.raises(WireError, match="expected 4000 x 4000 pixels"):
        decode(FRONT, [name, lying, payload])


def test_a_message_of_another_version_or_shape_is_refused():
    data = msgspec.to_builtins(COMMAND)
    for change, words in [
        ({"schema_version": 9}, "expected schema_version 1, got 9"),
        ({"row": -1}, r"\$\.row"),
    ]:
        with pytest.raises(WireError, match=words):
            decode(TOPICS["command"], [b"command", msgspec.msgpack.encode({**data, **change})])
    with pytest.raises(WireError, match="extra"):
        decode(TOPICS["command"], [b"command", msgspec.msgpack.encode({**data, "extra": 1})])


def test_sizes_are_capped_both_ways():
    with pytest.raises(WireError, match="at most 65536 bytes"):
        decode(TOPICS["task"], [b"task", bytes(65537)])
    with pytest.raises(WireError, match="at most"):
        encode(FRONT, frame(image=np.zeros((3000, 4000, 3), np.uint8)))


def test_a_message_must_be_of_its_topics_type():
    with pytest.raises(WireError, match="expected Command, got Task"):
        encode(TOPICS["command"], TASK)
    with pytest.raises(
        WireError, match=r"expected uint8\[h, w, 3\] for 'image', got float32\[4, 4, 3\]"
    ):
        encode(FRONT, frame(image=np.zeros((4, 4, 3), np.float32)))


def test_unknown_topics_are_named():
    with pytest.raises(ConfigError, match="got 'gossip' for 'topic'"):
        topic("gossip")
    with pytest.raises(ConfigError, match="for 'topic'"):
        topic("../../etc/color")


def accepted(name: str, parts: list[bytes]) -> Message | Frame | None:
    """What was decoded; None where it was refused.

    WireError is the only error that received bytes may cause.
    """
    try:
        return decode(topic(name), parts)
    except WireError as error:
        assert str(error)  # with a reason
        return None


def is_whole(name: str, message: Message | Frame | None) -> bool:
    """Whether a message that was accepted is of the topic's type and travels on unchanged; a
    refused one does not.
    """
    if message is None:
        return True
    codec: Codec = "raw_rgb8"  # loses nothing
    sent = encode(topic(name), message, codec)
    return isinstance(message, topic(name).type) and sent == encode(
        topic(name), decode(topic(name), sent), codec
    )


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=400))
def test_any_bytes_as_a_message(name, body):
    assert is_whole(name, accepted(name, [name.encode(), body]))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(MESSAGES)),
    st.integers(0, 10_000),
    st.integers(0, 255),
    st.integers(0, 10_000),
)
def test_mutated_and_cut_messages(name, place, value, cut):
    first, body = encode(topic(name), MESSAGES[name])
    mutated = bytearray(body)
    mutated[place % len(body)] = value
    end = 1 + cut % len(body)
    # a changed byte may make it end sooner
    assert is_whole(name, accepted(name, [first, bytes(mutated[:end])]))
    # what is only cut is never taken
    assert accepted(name, [first, body[:end]]) is None or end == len(body)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["raw_bgr8", "jpeg", "png"]),
    st.booleans(),
    st.integers(0, 10_000),
    st.integers(0, 255),
)
def test_mutated_frames(codec, in_header, place, value):
    parts = encode(FRONT, frame(), codec)
    part = 1 if in_header else 2
    mutated = bytearray(parts[part])
    mutated[place % len(mutated)] = value
    parts[part] = bytes(mutated)
    back = accepted("front/color", parts)
    assert is_whole("front/color", back)
    assert back is None or (isinstance(back, Frame) and back.image.shape == picture().shape)


nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_valid_encodings_of_wrong_values(name, data):
    fields = msgspec.to_builtins(MESSAGES[name])
    field = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(nested)
    message = accepted(name, [name.encode(), msgspec.msgpack.encode({**fields, field: value})])
    assert is_whole(name, message)
    # what is taken is what was sent
    if message is not None and isinstance(value, int | str | bool):
        assert getattr(message, field) == value


def test_hostile_lengths_and_depths_cost_nothing():
    key = b"\x81\xa7options"
    for body in (
        b"\xdd\xff\xff\xff\xff",
        key + b"\xdf\xff\xff\xff\xff",
        b"\x91" * 60_000,
        key * 6000,
    ):
        with pytest.raises(WireError):
            decode(TOPICS["task"], [b"task", body])
    with pytest.raises(WireError):
        decode(FRONT, [b"front/color", b'{"schema_version":' + b"9" * 5000 + b"}", b""])
