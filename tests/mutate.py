"""Valid messages made invalid in many ways: bytes changed, and valid encodings of wrong values."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

Parts = list[bytes]
BYTES = (
    0x00,
    0x01,
    0x7F,
    0x80,
    0x9F,
    0xC0,
    0xC1,
    0xC4,
    0xC6,
    0xC7,
    0xD8,
    0xDB,
    0xDD,
    0xDF,
    0xFF,
    *b'"{}[]\\:,-9eE.',
)
LENGTHS = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


WRONG: tuple[Callable[[random.Random], Any], ...] = (
    lambda r: None,
    lambda r: r.choice((True, False)),
    lambda r: r.choice((0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))),
    lambda r: r.choice(
        (0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
    ),
    lambda r: r.choice(("", "\x00", "x" * 5000, "../../etc/passwd", "\ud83e\udd16", "nan", "1")),
    lambda r: b"\x93NUMPY\x01\x00\xff\xff" + r.randbytes(20),
    lambda r: [],
    lambda r: {},
    lambda r: deep(r.choice((3, 50, 400))),
    lambda r: [1.0] * r.choice((1, 70, 5000)),
    lambda r: {
        "__ndarray__": True,
        "data": b"\x00" * 8,
        "dtype": r.choice(("O", "<f8", "V8", "<U2")),
        "shape": [2**40],
    },
    lambda r: {
        "__image__": True,
        "format": r.choice(("png", "jpeg", "gif")),
        "data": r.randbytes(12),
        "shape": [1],
    },
    lambda r: {b"__ndarray__": True, b"data": b"", b"dtype": b"|u1", b"shape": [0, -1, 3]},
    lambda r: {"__ndarray_class__": True, "as_npy": b"\x93NUMPY" + r.randbytes(r.randrange(60))},
)


def mutate_bytes(rng: random.Random, raw: bytes, other: bytes) -> bytes:
    """One to six changes of the bytes; `other` is for pieces of another message."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_CHANGES)(rng, data, other)
    return bytes(data)


def _place(rng: random.Random, data: Sequence[int]) -> int:
    """Anywhere; near the beginning more often, where the structure is."""
    return rng.randrange(min(len(data), rng.choice((16, 64, 400, len(data)))) or 1) if data else 0


def _set(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[_place(rng, data)] = rng.choice(BYTES) if rng.random() < 0.5 else rng.randrange(256)


def _flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[_place(rng, data) :]


def _remove(rng: random.Random, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    del data[place : place + rng.randrange(1, 9)]


def _insert(rng: random.Random, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    data[place:place] = bytes([rng.choice(BYTES)]) * rng.choice((1, 1, 2, 8, 300))


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start = rng.randrange(len(other) or 1)
    place = _place(rng, data)
    data[place : place + rng.randrange(20)] = other[start : start + rng.randrange(60)]


def _length(rng: random.Random, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    width = rng.choice((2, 4))
    data[place : place + width] = (rng.choice(LENGTHS) & (256**width - 1)).to_bytes(width, "big")


_CHANGES = (_set, _set, _flip, _flip, _cut, _remove, _insert, _splice, _length)


def mutate_value(rng: random.Random, value: Any) -> Any:
    """The same value with something wrong, missing or added somewhere inside."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed = dict(value)
        key = rng.choice(list(changed))
        action = rng.randrange(8)
        if action == 0:
            del changed[key]
        elif action == 1:
            changed[rng.choice(("extra", "schema_version", "options", "__ndarray__", "images"))] = (
                wrong(rng)
            )
        else:
            changed[key] = mutate_value(rng, changed[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        changed = list(value)
        place = rng.randrange(len(changed))
        changed[place : place + 1] = [mutate_value(rng, changed[place])] * rng.choice(
            (0, 1, 1, 1, 2, 40)
        )
        return changed
    return wrong(rng)


def wrong(rng: random.Random) -> Any:
    return rng.choice(WRONG)(rng)


def encode_msgpack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def encode_json(value: Any) -> bytes:
    return msgspec.json.encode(_jsonable(value))


def _jsonable(value: Any) -> Any:
    """JSON has text keys and no bytes."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.tolist() if isinstance(value, np.ndarray) else value
