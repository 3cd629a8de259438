"""Untrusted msgpack with arrays and images in it, to plain Python and back.

Knows three clients' forms of an array.

GR00T sends `.npy` bytes, openpi raw bytes under byte keys, vla-eval raw bytes or JPEG and PNG under
text keys. All are understood everywhere. Nothing is ever unpickled, and nothing grows: objects are
counted before they are made, the bytes of an array are compared with its shape, and what a message
unfolds to has a budget. `open_map` unpacks only the values that are read. Whatever is wrong, both
raise WireError and nothing else.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.topics import MIB
from trimvla.runtime.errors import WireError
from trimvla.runtime.image_codec import Kind, decode_image, measure
from trimvla.runtime.servers.msgpack_scan import MAX_OBJECTS, count_objects, is_list, is_map

__all__ = [
    "MAX_BYTES",
    "MAX_OBJECTS",
    "Form",
    "LazyMap",
    "count_objects",
    "open_map",
    "pack",
    "unpack",
]

Form = Literal["groot", "openpi", "vla-eval"]
T = TypeVar("T")
MAX_BYTES = 32 * MIB
"""Of a message, and again of all arrays and images that are unpacked from it."""
MAX_AXES = 8
DTYPE = re.compile(r"[<>|=]?[biuf][1248]")  # bool, integers, floats; no objects, no text
IMAGES = ("jpeg", "png")
NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER = re.compile(  # what `numpy.save` writes; NumPy itself would hand it to Python's parser
    r"\{'descr': '([^']{1,40})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}(?:,"
    r" |,|(?=\))))*)\),? ?\} *\n?"
)
MAX_NPY_HEADER = 1024  # bytes


@dataclass
class Budget:
    """What a message may still unfold to [bytes]."""

    left: int = MAX_BYTES

    def take(self, size: int) -> None:
        """Raise WireError where it is used up."""
        self.left -= size
        if self.left < 0:
            raise WireError(
                f"expected arrays and images of at most {MAX_BYTES} bytes in a message, got more"
            )


class LazyMap(Mapping[Any, Any]):
    """A msgpack map whose values are unpacked when they are read.

    Reading raises WireError for what is no value.
    """

    def __init__(self, fields: dict[Any, msgspec.Raw], budget: Budget) -> None:
        self._fields = fields
        self._budget = budget
        self._values: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - whatever a client sends
        if key not in self._values:
            raw = self._fields[key]
            self._values[key] = _guarded(lambda: _reveal(raw, self._budget))
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[Any]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def plain(self, key: str, kind: type[T], default: T) -> T:
        """A value of this very type, without arrays; `default` where the key is missing.

        Raises WireError.
        """
        if key not in self._fields:
            return default
        raw = self._fields[key]
        value = None if _is_container(raw) else _guarded(lambda: msgspec.msgpack.decode(raw))
        if type(value) is not kind:
            found = "a map or a list" if _is_container(raw) else type(value).__name__
            raise WireError(f"expected {kind.__name__} for '{key}', got {found}")
        return value


def unpack(raw: bytes) -> Any:  # noqa: ANN401 - whatever a client sends
    """msgpack as dicts, lists, numbers, text, bytes and arrays. Raises WireError."""
    _check(raw)
    return _guarded(lambda: _eager(_reveal(raw, Budget())))


def open_map(raw: bytes) -> LazyMap:
    """A msgpack message that is a map; nothing in it is unpacked yet. Raises WireError."""
    _check(raw)
    if not is_map(raw[0]):
        value = "a list" if is_list(raw[0]) else "something else"
        raise WireError(f"expected a map, got {value}")
    return LazyMap(_guarded(lambda: _fields(raw)), Budget())


def pack(value: Any, form: Form) -> bytes:  # noqa: ANN401 - whatever we answer
    """Plain Python and arrays as msgpack, with arrays in this client's form."""
    return _ENCODERS[form].encode(value)


def _check(raw: bytes) -> None:
    if len(raw) > MAX_BYTES:
        raise WireError(f"expected at most {MAX_BYTES} bytes, got {len(raw)}")
    count_objects(raw)


def _guarded(use: Callable[[], T]) -> T:
    """Run a decoder; whatever is wrong with the bytes is a WireError."""
    try:
        return use()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"no msgpack: {error}") from None


_decode_fields = msgspec.msgpack.Decoder(dict[object, msgspec.Raw]).decode
_decode_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def _fields(raw: bytes | msgspec.Raw) -> dict[Any, msgspec.Raw]:
    fields = _decode_fields(raw)
    for key in fields:
        if not isinstance(key, str | bytes):
            raise WireError(f"expected text for the keys of a map, got {type(key).__name__}")
    return cast("dict[Any, msgspec.Raw]", fields)


def _is_container(raw: msgspec.Raw) -> bool:
    first = memoryview(raw)[0]
    return is_map(first) or is_list(first)


def _reveal(raw: bytes | msgspec.Raw, budget: Budget) -> Any:  # noqa: ANN401
    """One value: arrays in place of what stands for them, maps unread."""
    first = memoryview(raw)[0]
    if is_list(first):
        return [_reveal(item, budget) for item in _decode_items(raw)]
    if not is_map(first):
        return msgspec.msgpack.decode(raw)
    fields = _fields(raw)
    for mark, make in _MARKS.items():
        if mark in fields:
            return make(fields, budget)
    return LazyMap(fields, budget)


def _eager(value: Any) -> Any:  # noqa: ANN401
    """With everything read."""
    if isinstance(value, list):
        return [_eager(item) for item in value]
    return (
        {key: _eager(item) for key, item in value.items()} if isinstance(value, LazyMap) else value
    )


_Fields = Mapping[Any, msgspec.Raw]


def _from_npy(value: _Fields, budget: Budget) -> NDArray[Any]:
    raw = _field(value, "as_npy", bytes)
    dtype, fortran, shape, start = _npy_header(raw)
    return _array(memoryview(raw)[start:], dtype, shape, budget, "F" if fortran else "C")


def _npy_header(raw: bytes) -> tuple[str, bool, list[int], int]:
    """Type, order, shape, and where the numbers begin. Raises WireError."""
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(raw[6:8], 0)
    length = int.from_bytes(raw[8 : 8 + width], "little")
    start = 8 + width + length
    if not raw.startswith(NPY_MAGIC) or not width or length > MAX_NPY_HEADER or start > len(raw):
        raise WireError("expected npy bytes for 'as_npy', got something else")
    found = NPY_HEADER.fullmatch(raw[8 + width : start].decode("latin-1"))
    if found is None:
        raise WireError("expected npy bytes for 'as_npy', got another header than numpy.save's")
    dtype, order, shape = found.groups()
    return dtype, order == "True", [int(axis) for axis in shape.split(",") if axis.strip()], start


def _from_bytes(value: _Fields, budget: Budget) -> NDArray[Any]:
    shape = _field(value, "shape", list)
    return _array(_field(value, "data", bytes), _text(value, "dtype"), shape, budget)


def _from_generic(value: _Fields, budget: Budget) -> int | float | bool:
    """openpi's NumPy scalars."""
    return _field(value, "data", (int, float, bool))


def _from_image(value: _Fields, budget: Budget) -> NDArray[Any]:
    kind = _text(value, "format").lower()
    if kind == "raw":
        return _from_bytes(value, budget)
    if kind not in IMAGES:
        raise WireError(f"expected raw, jpeg or png for 'format', got {kind[:40]!r}")
    data = _field(value, "data", bytes)
    try:
        width, height = measure(data, cast("Kind", kind))
        budget.take(3 * width * height)
        return decode_image(data, cast("Kind", kind))
    except WireError as error:
        raise WireError(f"expected a {kind} image for 'data', got: {error}") from None


_MARKS: dict[str | bytes, Callable[[_Fields, Budget], Any]] = {
    "__ndarray_class__": _from_npy,
    b"__ndarray__": _from_bytes,
    "__ndarray__": _from_bytes,
    b"__npgeneric__": _from_generic,
    "__image__": _from_image,
}


def _array(
    data: bytes | memoryview,
    dtype: str,
    shape: list[Any],
    budget: Budget,
    order: Literal["C", "F"] = "C",
) -> NDArray[Any]:
    if not DTYPE.fullmatch(dtype):
        raise WireError(f"expected numbers for 'dtype', got {dtype[:40]!r}")
    if len(shape) > MAX_AXES or not all(
        type(axis) is int and 0 <= axis <= MAX_BYTES for axis in shape
    ):
        raise WireError(f"expected at most {MAX_AXES} lengths for 'shape', got {str(shape)[:80]}")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise WireError(f"expected numbers for 'dtype', got {dtype!r}") from None
    if (size := math.prod(shape) * kind.itemsize) != len(data):
        raise WireError(f"expected {size} bytes for {kind}{shape}, got {len(data)}")
    budget.take(size)
    try:
        return np.frombuffer(data, kind).reshape(tuple(shape), order=order)
    except ValueError as error:  # lengths whose product overflows, beside a zero
        raise WireError(f"expected lengths for 'shape', got {shape}: {error}") from None


def _field(value: _Fields, name: str, kind: Any) -> Any:  # noqa: ANN401
    """A field under its text or byte key."""
    raw = value.get(name, value.get(name.encode()))
    found = None if raw is None else msgspec.msgpack.decode(raw)
    if not isinstance(found, kind):
        raise WireError(
            f"expected {getattr(kind, '__name__', 'a number')} for '{name}', got"
            f" {type(found).__name__}"
        )
    return found


def _text(value: _Fields, name: str) -> str:
    found = _field(value, name, (str, bytes))
    return found if isinstance(found, str) else found.decode("ascii", "replace")


# Encoding


def _to_groot(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        sink = io.BytesIO()
        np.save(sink, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": sink.getvalue()}
    return _plain(value)


def _to_openpi(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return _plain(value)


def _to_vla_eval(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return {
            "__ndarray__": True,
            "data": value.tobytes(),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
    return _plain(value)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"expected numbers, text, arrays or containers of them, got {type(value).__name__}"
    )


_ENCODERS: dict[Form, msgspec.msgpack.Encoder] = {
    "groot": msgspec.msgpack.Encoder(enc_hook=_to_groot),
    "openpi": msgspec.msgpack.Encoder(enc_hook=_to_openpi),
    "vla-eval": msgspec.msgpack.Encoder(enc_hook=_to_vla_eval),
}
