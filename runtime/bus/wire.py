"""Messages to multipart bytes and back: schema-checked, size-capped, never pickle.

Knows bytes; not sockets.

A message is `[topic, msgpack]`. A camera frame is `[topic, JSON header, payload]`, in the format of
the registry's `camera-stream`, so that its viewers show our cameras and its publishers feed
our policies. Whatever is wrong with received bytes, `decode` raises WireError and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import SCHEMA_VERSION, UNKNOWN_AGE, Frame, Message
from trimvla.runtime.bus.topics import KIB, Topic
from trimvla.runtime.errors import WireError
from trimvla.runtime.specs import MAX_PIXELS

Codec = Literal["raw_bgr8", "raw_rgb8", "jpeg", "png"]
MAX_HEADER_BYTES = 16 * KIB

Int64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]


class FrameHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a frame before its payload is touched.

    Fields that we do not know are passed over.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    camera: str
    stream: str
    sequence: Int64
    captured_monotonic_ns: Int64
    captured_utc_ns: Int64
    timestamp_source: str
    width: Side
    height: Side
    pixel_format: Literal["bgr8", "rgb8"]
    codec: Codec
    payload_size: Int64


class _Version(msgspec.Struct):
    schema_version: int


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.json.Decoder(FrameHeader)
_version_decoder = msgspec.msgpack.Decoder(_Version)
_json_version_decoder = msgspec.json.Decoder(_Version)


def encode(topic: Topic, message: Message | Frame, codec: Codec = "raw_rgb8") -> list[bytes]:
    """A message as the parts of one multipart message; `codec` is for frames.

    Raises WireError for a message of another type than the topic's, or one larger than the topic
    allows.
    """
    if not isinstance(message, topic.type):
        raise WireError(
            f"topic '{topic.name}': expected {topic.type.__name__}, got {type(message).__name__}"
        )
    body = (
        _encode_frame(message, codec) if isinstance(message, Frame) else [_encoder.encode(message)]
    )
    _check_size(topic, body)
    return [topic.name.encode(), *body]


def decode(topic: Topic, parts: Sequence[bytes]) -> Message | Frame:
    """The message in these parts. Raises WireError that names the topic and the field."""
    expected = 3 if topic.type is Frame else 2
    if len(parts) != expected:
        raise WireError(f"topic '{topic.name}': expected {expected} parts, got {len(parts)}")
    if parts[0] != topic.name.encode():
        raise WireError(f"expected topic '{topic.name}', got {bytes(parts[0][:64])!r}")
    _check_size(topic, parts[1:])
    try:
        return (
            _decode_frame(topic, parts[1], parts[2])
            if topic.type is Frame
            else _decode_message(topic, parts[1])
        )
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"topic '{topic.name}': {error}") from None


def _check_size(topic: Topic, body: Sequence[bytes]) -> None:
    size = sum(map(len, body))
    if size > topic.max_bytes:
        raise WireError(
            f"topic '{topic.name}': expected at most {topic.max_bytes} bytes, got {size}"
        )


@lru_cache(maxsize=64)
def _message_decoder(kind: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def _decode_message(topic: Topic, body: bytes) -> Message:
    _check_version(topic, _version_decoder.decode(body).schema_version)
    return _message_decoder(cast("type[Message]", topic.type)).decode(body)


def _check_version(topic: Topic, version: int) -> None:
    """Before the other fields: a message of another version may have others."""
    if version != SCHEMA_VERSION:
        raise WireError(
            f"topic '{topic.name}': expected schema_version {SCHEMA_VERSION}, got {version}"
        )


def _encode_frame(frame: Frame, codec: Codec) -> list[bytes]:
    image = frame.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise WireError(
            f"expected uint8[h, w, 3] for 'image', got {image.dtype}{list(image.shape)}"
        )
    payload = _encode_image(image, codec)
    header = FrameHeader(
        camera=frame.camera,
        stream=frame.stream,
        sequence=frame.sequence,
        captured_monotonic_ns=frame.time_ns,
        captured_utc_ns=frame.utc_ns,
        timestamp_source=frame.timestamp_source,
        width=image.shape[1],
        height=image.shape[0],
        pixel_format="rgb8" if codec == "raw_rgb8" else "bgr8",
        codec=codec,
        payload_size=len(payload),
    )
    return [msgspec.json.encode(header), payload]


def flip(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB to BGR and back, as a new array: plane by plane, which NumPy does four times as fast as a
    reversed copy.
    """
    flipped = np.empty(image.shape, np.uint8)
    for channel in range(3):
        flipped[..., channel] = image[..., 2 - channel]
    return flipped


def _encode_image(image: NDArray[np.uint8], codec: Codec) -> bytes:
    if codec == "raw_rgb8":
        return image.tobytes()
    if codec == "raw_bgr8":
        return flip(image).tobytes()
    # brings Pillow, which control has no use for
    from trimvla.runtime.image_codec import encode_image

    return encode_image(image, codec)


def decode_header(topic: Topic, parts: Sequence[bytes]) -> FrameHeader:
    """Decode the header of a frame; the image itself stays packed. Raises WireError."""
    if topic.type is not Frame or len(parts) != 3 or parts[0] != topic.name.encode():
        raise WireError(
            f"topic '{topic.name}': expected the 3 parts of a camera frame, got {len(parts)}"
        )
    _check_size(topic, parts[1:])
    try:
        return _checked_header(topic, parts[1], parts[2])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"topic '{topic.name}': {error}") from None


def shift_header(topic: Topic, parts: Sequence[bytes], utc_to_monotonic: int) -> list[bytes]:
    """A frame from another host, its capture put on our clock by its wall-clock time.

    Raises WireError.

    A wall-clock time from before this host's start, or none, makes it a frame of unknown age.
    """
    header = decode_header(topic, parts)
    captured_ns = header.captured_utc_ns + utc_to_monotonic
    if 0 < captured_ns < 2**63:
        moved = msgspec.structs.replace(header, captured_monotonic_ns=captured_ns)
    else:
        moved = msgspec.structs.replace(
            header, captured_monotonic_ns=0, timestamp_source=UNKNOWN_AGE
        )
    return [parts[0], msgspec.json.encode(moved), parts[2]]


def _checked_header(topic: Topic, raw_header: bytes, payload: bytes) -> FrameHeader:
    if len(raw_header) > MAX_HEADER_BYTES:
        raise WireError(
            f"topic '{topic.name}': expected a header of at most {MAX_HEADER_BYTES} bytes"
        )
    _check_version(topic, _json_version_decoder.decode(raw_header).schema_version)
    header = _header_decoder.decode(raw_header)
    for name, expected, got in _frame_facts(topic, header, payload):
        if got != expected:
            raise WireError(
                f"topic '{topic.name}': expected {expected!r} for '{name}', got {got!r}"
            )
    return header


def _decode_frame(topic: Topic, raw_header: bytes, payload: bytes) -> Frame:
    header = _checked_header(topic, raw_header, payload)
    image = _decode_image(topic, header, payload)
    image.flags.writeable = False
    return Frame(
        camera=header.camera,
        time_ns=header.captured_monotonic_ns,
        image=image,
        sequence=header.sequence,
        utc_ns=header.captured_utc_ns,
        stream=header.stream,
        timestamp_source=header.timestamp_source,
    )


def _frame_facts(
    topic: Topic, header: FrameHeader, payload: bytes
) -> list[tuple[str, object, object]]:
    """Name, expected and received value of each header field that contradicts another one or the
    payload.
    """
    camera, _, stream = topic.name.rpartition("/")
    facts: list[tuple[str, object, object]] = [
        ("camera", camera, header.camera),
        ("stream", stream, header.stream),
        ("payload_size", len(payload), header.payload_size),
    ]
    if header.codec.startswith("raw_"):
        facts.append(("pixel_format", header.codec.removeprefix("raw_"), header.pixel_format))
        facts.append(("payload_size", header.width * header.height * 3, header.payload_size))
    return facts


def _decode_image(topic: Topic, header: FrameHeader, payload: bytes) -> NDArray[np.uint8]:
    """uint8[h, w, 3] RGB."""
    if header.width * header.height > MAX_PIXELS:
        raise WireError(f"topic '{topic.name}': expected at most {MAX_PIXELS} pixels")
    codec = header.codec
    if codec == "raw_rgb8" or codec == "raw_bgr8":  # noqa: PLR1714 (pyright then knows what is left)
        image = np.frombuffer(payload, np.uint8).reshape(header.height, header.width, 3)
        return flip(image) if codec == "raw_bgr8" else image
    from trimvla.runtime.image_codec import decode_image

    try:
        return decode_image(payload, codec, (header.width, header.height))
    except WireError as error:
        raise WireError(f"topic '{topic.name}': payload: {error}") from None
