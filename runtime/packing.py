"""Untrusted msgpack with arrays and pictures in it, to plain Python and back. Knows three clients' forms of an array.

GR00T sends `.npy` bytes, openpi raw bytes under byte keys, vla-eval raw bytes or JPEG and PNG under text keys. All are
understood everywhere. Nothing is ever unpickled, and nothing grows: objects are counted before they are made, and the
bytes of an array are compared with its shape. Whatever is wrong, `unpack` raises WireError and nothing else.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from trimvla.runtime.errors import WireError
from trimvla.runtime.topics import MIB
from trimvla.runtime.wire import MAX_PIXELS

Form = Literal["groot", "openpi", "vla-eval"]
MAX_BYTES = 32 * MIB
MAX_OBJECTS = 20_000
MAX_AXES = 8
DTYPE = re.compile(r"[<>|=]?[biuf][1248]")  # bool, integers, floats; no objects, no text
PICTURES = ("JPEG", "PNG")


def unpack(raw: bytes) -> Any:  # noqa: ANN401 - whatever a client sends
    """msgpack as dicts, lists, numbers, text, bytes and arrays. Raises WireError."""
    if len(raw) > MAX_BYTES:
        raise WireError(f"expected at most {MAX_BYTES} bytes, got {len(raw)}")
    count_objects(raw)
    try:
        return _revive(msgspec.msgpack.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"no msgpack: {error}") from None


def pack(value: Any, form: Form) -> bytes:  # noqa: ANN401 - whatever we answer
    """Plain Python and arrays as msgpack, with arrays in this client's form."""
    return _ENCODERS[form].encode(value)


def _revive(value: Any) -> Any:  # noqa: ANN401
    """Arrays in place of what stands for them."""
    if isinstance(value, list):
        return [_revive(item) for item in value]
    if not isinstance(value, dict):
        return value
    for mark, make in _MARKS.items():
        if mark in value:
            return make(value)
    return {key: _revive(item) for key, item in value.items()}


def _from_npy(value: Mapping[Any, Any]) -> NDArray[Any]:
    raw = _field(value, "as_npy", bytes)
    stream = io.BytesIO(raw)
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # a damaged header makes NumPy and Python's parser raise almost anything
        raise WireError(f"expected npy bytes for 'as_npy', got: {str(error)[:200]}") from None
    return _array(raw[stream.tell() :], dtype.str, shape, "F" if fortran else "C")


def _from_bytes(value: Mapping[Any, Any]) -> NDArray[Any]:
    shape = _field(value, "shape", list)
    return _array(_field(value, "data", bytes), _text(value, "dtype"), shape)


def _from_generic(value: Mapping[Any, Any]) -> int | float | bool:
    """openpi's NumPy scalars."""
    return _field(value, "data", (int, float, bool))


def _from_picture(value: Mapping[Any, Any]) -> NDArray[Any]:
    kind = _text(value, "format").upper()
    if kind == "RAW":
        return _from_bytes(value)
    if kind not in PICTURES:
        raise WireError(f"expected raw, jpeg or png for 'format', got {kind[:40]!r}")
    try:
        with Image.open(io.BytesIO(_field(value, "data", bytes)), formats=[kind]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise WireError(f"expected at most {MAX_PIXELS} pixels, got {picture.size}")
            return np.array(picture.convert("RGB"))
    except WireError:
        raise
    except Exception as error:  # damaged pictures make the decoders raise almost anything
        raise WireError(f"expected a {kind} picture for 'data', got: {str(error)[:200]}") from None


_MARKS = {
    "__ndarray_class__": _from_npy,
    b"__ndarray__": _from_bytes,
    "__ndarray__": _from_bytes,
    b"__npgeneric__": _from_generic,
    "__image__": _from_picture,
}


def _array(data: bytes, dtype: str, shape: Any, order: Literal["C", "F"] = "C") -> NDArray[Any]:  # noqa: ANN401
    if not DTYPE.fullmatch(dtype):
        raise WireError(f"expected numbers for 'dtype', got {dtype[:40]!r}")
    if len(shape) > MAX_AXES or not all(type(axis) is int and 0 <= axis <= MAX_BYTES for axis in shape):
        raise WireError(f"expected at most {MAX_AXES} lengths for 'shape', got {str(shape)[:80]}")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise WireError(f"expected numbers for 'dtype', got {dtype!r}") from None
    if (size := math.prod(shape) * kind.itemsize) != len(data):
        raise WireError(f"expected {size} bytes for {kind}{list(shape)}, got {len(data)}")
    return np.frombuffer(data, kind).reshape(tuple(shape), order=order)


def _field(value: Mapping[Any, Any], name: str, kind: Any) -> Any:  # noqa: ANN401
    """A field under its text or byte key."""
    found = value.get(name, value.get(name.encode()))
    if not isinstance(found, kind):
        raise WireError(f"expected {getattr(kind, '__name__', 'a number')} for '{name}', got {type(found).__name__}")
    return found


def _text(value: Mapping[Any, Any], name: str) -> str:
    found = _field(value, name, (str, bytes))
    return found if isinstance(found, str) else found.decode("ascii", "replace")


# Counting

_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # of a length in bytes
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # width of a count, objects for each
_FIXED = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FIXED |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}


def count_objects(raw: bytes, limit: int = MAX_OBJECTS) -> int:
    """How many objects msgpack holds. Raises WireError beyond the limit: a small message may unfold into gigabytes."""
    place, waiting, seen = 0, 1, 0
    while waiting:
        if seen + waiting > limit:
            raise WireError(f"expected at most {limit} objects in a message")
        if place >= len(raw):
            raise WireError("no msgpack: it is cut off")
        size, inside = _extent(raw, place)
        place, waiting, seen = place + size, waiting - 1 + inside, seen + 1
    return seen


def _extent(raw: bytes, place: int) -> tuple[int, int]:
    """Of the object that begins here: its bytes without its parts, and how many parts follow."""
    byte = raw[place]
    if byte in _WIDTHS:
        width = _WIDTHS[byte]
        kind = 1 if 0xC7 <= byte <= 0xC9 else 0  # an extension's type
        return 1 + width + kind + int.from_bytes(raw[place + 1 : place + 1 + width], "big"), 0
    if byte in _COUNTS:
        width, each = _COUNTS[byte]
        return 1 + width, each * int.from_bytes(raw[place + 1 : place + 1 + width], "big")
    if 0x80 <= byte <= 0x9F:
        return 1, (byte & 15) * (2 if byte < 0x90 else 1)
    if 0xA0 <= byte <= 0xBF:
        return 1 + (byte & 31), 0
    return 1 + _FIXED.get(byte, 0), 0


# Encoding


def _to_groot(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        sink = io.BytesIO()
        np.save(sink, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": sink.getvalue()}
    return _plain(value)


def _to_openpi(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return _plain(value)


def _to_vla_eval(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    return _plain(value)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected numbers, text, arrays or containers of them, got {type(value).__name__}")


_ENCODERS: dict[Form, msgspec.msgpack.Encoder] = {
    "groot": msgspec.msgpack.Encoder(enc_hook=_to_groot),
    "openpi": msgspec.msgpack.Encoder(enc_hook=_to_openpi),
    "vla-eval": msgspec.msgpack.Encoder(enc_hook=_to_vla_eval),
}
