"""Which other files an ONNX graph reads, found by walking its protobuf bytes: no library, no copy,
nothing executed.

A graph may name files of weights ("external data") in any of its tensors, and a compiled engine in
an EPContext node; a backend opens them while it loads. Knows the wire format and the few fields of
ONNX that lead to such a name.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from trimvla.runtime.errors import BundleError

# wire types; groups (3, 4) are none that ONNX has
VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5
MAX_DEPTH = 32  # of graphs in attributes of nodes
# an operator that loads a file, or runs an engine that lies in the graph
FORBIDDEN = (b"EPContext",)

# message -> field number -> the message that it holds; only what leads to a tensor or an operator's
# name
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
OPERATOR = 4  # of a node
# of an entry
KEY = 1
VALUE = 2

Span = tuple[int, int]


def referenced_files(path: Path) -> tuple[str, ...]:
    """Names of the files that a graph reads besides its own, sorted.

    Raises:
        BundleError: the file is no ONNX graph, or has an operator that loads files.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise BundleError(f"{path}: expected an ONNX graph, got an empty file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return tuple(sorted(set(_references(data, (0, size), "model", 0))))
            except (ValueError, IndexError) as error:
                raise BundleError(f"{path}: expected an ONNX graph, got: {error}") from None


def _references(data: mmap.mmap, span: Span, kind: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError(f"messages nested deeper than {MAX_DEPTH}")
    if kind == "entry":
        yield from _location(data, span)
        return
    children = CHILDREN[kind]
    for number, field in _fields(data, span):
        if number in children:
            yield from _references(data, field, children[number], depth + 1)
        elif kind == "node" and number == OPERATOR and data[slice(*field)] in FORBIDDEN:
            raise ValueError(f"an operator {data[slice(*field)].decode()}, which loads a file")


def _location(data: mmap.mmap, span: Span) -> Iterator[str]:
    """The file's name in an entry of external data; every value of the entry, should there be
    several.
    """
    fields = [(number, data[slice(*field)]) for number, field in _fields(data, span)]
    if any(number == KEY and value == b"location" for number, value in fields):
        for number, value in fields:
            if number == VALUE:
                yield value.decode("utf-8", errors="replace")


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and content of every field of bytes; numbers are stepped over."""
    place, end = span
    while place < end:
        tag, place = _varint(data, place, end)
        number = tag >> 3
        wire = tag & 7
        if wire == VARINT:
            _, place = _varint(data, place, end)
        elif wire == BYTES:
            length, place = _varint(data, place, end)
            if length > end - place:
                raise ValueError(
                    f"a field of {length} bytes where {end - place} are left: cut off, or no graph"
                )
            yield number, (place, place + length)
            place += length
        elif wire in (FIXED64, FIXED32):
            place += 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown kind {wire}")
    if place != end:
        raise ValueError("a field that ends behind its message")


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise ValueError("a number that is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise ValueError("a number of more than 64 bits")
