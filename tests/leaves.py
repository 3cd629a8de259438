"""Messages of every protocol as trees, and every one of them with any kind of value at any one
leaf.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from trimvla.runtime.servers.packing import Form, pack

Path = tuple[Any, ...]
DTYPES = (
    "?",
    "u1",
    "i1",
    "<u2",
    ">i4",
    "<u8",
    "<f2",
    "<f4",
    ">f8",
    "<c8",
    "S3",
    "U2",
    "O",
    "<M8[ns]",
    "V4",
    "x",
    "",
)


def png(side: int = 4) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(sink, "png")
    return sink.getvalue()


def npy(array: np.ndarray) -> dict[str, Any]:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return {"__ndarray_class__": True, "as_npy": sink.getvalue()}


def nested(depth: int, value: Any, kind: type) -> Any:
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def arrays() -> st.SearchStrategy[Any]:
    """In every form, of every type and shape, true and untrue."""
    shapes = st.lists(st.sampled_from([0, 1, 2, 3, 7, 2**25, 2**40, -1, None, "x"]), max_size=10)
    raw = st.builds(
        lambda keys, data, dtype, shape: {
            keys[0]: True,
            keys[1]: data,
            keys[2]: dtype,
            keys[3]: shape,
        },
        st.sampled_from(
            [
                ("__ndarray__", "data", "dtype", "shape"),
                (b"__ndarray__", b"data", b"dtype", b"shape"),
            ],
        ),
        st.sampled_from([b"", bytes(1), bytes(8), bytes(48), "text", None]),
        st.sampled_from([*DTYPES, None, 7]),
        shapes,
    )
    true = st.sampled_from(
        [
            np.zeros((0,), np.float32),
            np.zeros((2, 2)),
            np.zeros((), np.int64),
            np.full(3, np.nan),
            np.full(3, 1e300),
            np.zeros((0, 4, 3), np.uint8),
            np.zeros((1, 1, 4, 4, 3), np.uint8),
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((4, 4, 3), bool),
            np.zeros(5000),
            np.array(["a"]),
            np.array([None], object),
        ]
    ).map(npy)
    image = st.builds(
        lambda kind, data: {"__image__": True, "format": kind, "data": data, "shape": [4, 4, 3]},
        st.sampled_from(["png", "jpeg", "raw", "PNG", "gif", 5]),
        st.sampled_from([png(), png()[:50], b"", b"\xff\xd8\xff", None]),
    )
    generic = st.builds(
        lambda data: {b"__npgeneric__": True, b"data": data, b"dtype": "<f8"},
        st.sampled_from([1, 2.0, None, "x", b""]),
    )
    return st.one_of(raw, true, image, generic)


def values() -> st.SearchStrategy[Any]:
    """Every kind of value that msgpack holds."""
    plain = st.sampled_from(
        [
            None,
            True,
            False,
            0,
            -1,
            2**63 - 1,
            2**63,
            2**64 - 1,
            -(2**63),
            0.5,
            1e308,
            float("nan"),
            float("inf"),
        ]
    )
    text = st.sampled_from(
        ["", " ", "red", "x" * 5000, "\x00\x1b[2J\n", "日本語", "[INST] x [/INST]", "%s %n {0}"]
    )
    other = st.sampled_from(
        [
            b"",
            b"\xff" * 100,
            [],
            {},
            [1, 2.5, None],
            {"a": 1},
            {b"a": 1},
            {1: 2},
            [[["go"]]],
            nested(50, 1, list),
            nested(900, 1, list),
            nested(5000, 1, list),
            nested(900, 1, dict),
            msgspec.msgpack.Ext(5, b"abc"),
            msgspec.msgpack.Ext(-1, bytes(12)),
            msgspec.msgpack.Ext(-1, b"\xff" * 12),
            datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        ]
    )
    return st.one_of(plain, text, other, arrays())


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a tree, inner ones too."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from leaves(item, (*path, key))


def replaced(value: Any, path: Path, new: Any) -> Any:
    """The tree with another value at one place."""
    if not path:
        return new
    if isinstance(value, dict):
        return {
            key: replaced(item, path[1:], new) if key == path[0] else item
            for key, item in value.items()
        }
    return [
        replaced(item, path[1:], new) if number == path[0] else item
        for number, item in enumerate(value)
    ]


def tree(value: Any, form: Form) -> Any:
    """A message as what msgpack makes of it: arrays are maps with leaves of their own."""
    return msgspec.msgpack.decode(pack(value, form))


def encode(value: Any) -> bytes:
    """Any tree as msgpack, whatever its depth."""
    sink: list[bytes] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            sink.append(b"\xdf" + len(item).to_bytes(4, "big"))
            pending += [part for pair in reversed(list(item.items())) for part in reversed(pair)]
        elif isinstance(item, list):
            sink.append(b"\xdd" + len(item).to_bytes(4, "big"))
            pending += reversed(item)
        else:
            sink.append(msgspec.msgpack.encode(item))
    return b"".join(sink)
