"""Texts from elsewhere, read one way: UTF-8, JSON and TOML, with one error that names file, place
and what came.

A byte-order mark is accepted; another encoding, an empty or cut off file, a Git LFS pointer, a
device or pipe, and what is too large or nested too deep are refused. Knows encodings and syntax;
what a text means is its reader's business.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimvla.runtime.errors import ConfigError, TrimvlaError

MAX_TEXT_BYTES = 64 << 20  # tokenizers take megabytes; nothing that is text takes more
MAX_DEPTH = 64  # of nested lists and tables
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's mark begins with the first
SHOWN = 40  # characters of a text in an error

Error = type[TrimvlaError]


def read_bytes(
    path: Path, what: str, *, limit: int = MAX_TEXT_BYTES, error: Error = ConfigError
) -> bytes:
    """The content of a regular file.

    Args:
        path: the file; it is opened without waiting, so that a pipe is refused and not waited for.
        what: what is expected in it, for the error's words.
        limit: largest size [bytes].
        error: the class that is raised where there is no such file, or where it is no file, too
            large or a pointer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        raise error(f"{path}: expected {what}, got: {_reason(problem)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: expected {what}, got no regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            raw = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{path}: expected {what}, got: {_reason(problem)}") from None
    if len(raw) > limit:
        raise error(f"{path}: expected {what} of at most {limit} bytes, got more")
    if raw.startswith(LFS_POINTER):
        raise error(f"{path}: expected {what}, got {describe_pointer(raw)}")
    return raw


def read_text(
    path: Path, what: str, *, limit: int = MAX_TEXT_BYTES, error: Error = ConfigError
) -> str:
    """A text file, without its byte-order mark; arguments and errors as for `read_bytes`."""
    return decode_text(read_bytes(path, what, limit=limit, error=error), path, what, error=error)


def read_json(
    path: Path, what: str, *, limit: int = MAX_TEXT_BYTES, error: Error = ConfigError
) -> Any:  # noqa: ANN401
    """A JSON file as Python's values; arguments and errors as for `read_bytes`."""
    return parse_json(read_bytes(path, what, limit=limit, error=error), path, what, error=error)


def read_toml(
    path: Path, what: str, *, limit: int = MAX_TEXT_BYTES, error: Error = ConfigError
) -> dict[str, Any]:
    """A TOML file as tables; arguments and errors as for `read_bytes`."""
    text = read_text(path, what, limit=limit, error=error)
    try:
        data = msgspec.toml.decode(text)
    except RecursionError:
        raise error(f"{path}: expected {what}, got values nested too deep") from None
    except (msgspec.DecodeError, ValueError) as problem:
        raise error(f"{path}: expected {what}, got: {problem}") from None
    _check_depth(data, path, what, error)
    return data


def decode_text(raw: bytes, path: Path | str, what: str, *, error: Error = ConfigError) -> str:
    """UTF-8 bytes as text, without a byte-order mark; `path` is for the error's words."""
    if raw.startswith(LFS_POINTER):
        raise error(f"{path}: expected {what}, got {describe_pointer(raw)}")
    if raw.startswith(UTF16):
        raise error(f"{path}: expected {what} in UTF-8, got UTF-16: save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        before = raw[: problem.start]
        line = before.count(b"\n") + 1
        byte = f"byte 0x{raw[problem.start]:02X} in line {line}"
        raise error(
            f"{path}: expected {what} in UTF-8, got {byte} (Latin-1?): save it as UTF-8"
        ) from None
    if "\0" in text:
        raise error(
            f"{path}: expected {what}, got a zero byte in line"
            f" {text[: text.index(chr(0))].count(chr(10)) + 1}"
        )
    return text


def parse_json(raw: bytes, path: Path | str, what: str, *, error: Error = ConfigError) -> Any:  # noqa: ANN401
    """JSON bytes as Python's values; `path` is for the error's words.

    NaN and infinity, which JSON does not know and Python writes, are let through: whoever reads
    numbers checks them, and can name the one that is wrong. A key that stands twice in one table is
    refused: readers differ in which they take.
    """
    text = decode_text(raw, path, what, error=error)
    if not text.strip():
        raise error(f"{path}: expected {what}, got an empty file")
    try:
        data = json.loads(text, object_pairs_hook=_table)
    except json.JSONDecodeError as problem:
        cut = (
            ", where the file ends: it is cut off" if problem.pos >= len(text.rstrip()) - 1 else ""
        )
        place = f"line {problem.lineno}, column {problem.colno}"
        raise error(
            f"{path}: expected {what} as JSON, got at {place}{cut}: {problem.msg}"
        ) from None
    except RecursionError:
        raise error(f"{path}: expected {what}, got values nested deeper than {MAX_DEPTH}") from None
    except ValueError as problem:
        raise error(f"{path}: expected {what} as JSON, got: {problem}") from None
    if "\\ud" in text.lower():  # escapes of half characters, which no text can be written with
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise error(
                f"{path}: expected {what}, got half of a surrogate pair in a text"
            ) from None
        except (RecursionError, ValueError):
            pass  # what is nested too deep is reported below
    _check_depth(data, path, what, error)
    return data


def convert(data: object, kind: Any, path: Path | str, *, error: Error = ConfigError) -> Any:  # noqa: ANN401
    """Parsed values as a msgspec type; the error names the file and the key."""
    try:
        return msgspec.convert(data, kind, strict=True)
    except (msgspec.ValidationError, TrimvlaError) as problem:
        raise error(f"{path}: {problem}") from None


def describe_pointer(raw: bytes) -> str:
    """What a Git LFS pointer is and what to do about it, in words."""
    sizes = [line.removeprefix(b"size ") for line in raw.splitlines() if line.startswith(b"size ")]
    size = f" to {int(sizes[0])} bytes" if sizes and sizes[0].isdigit() else ""
    return (
        f"a Git LFS pointer{size}, not the file itself: run `git lfs pull` in the clone that it is"
        " from"
    )


def pointer_in(path: Path) -> str | None:
    """`describe_pointer` where a file, of any kind, is only a pointer; None otherwise, also where
    it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    return describe_pointer(head) if head.startswith(LFS_POINTER) else None


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice[:SHOWN]}' twice in one table")
    return table


def _check_depth(data: object, path: Path | str, what: str, error: Error) -> None:
    """Without recursion: later readers and writers have less room than the parser had."""
    level = [data]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise error(f"{path}: expected {what}, got values nested deeper than {MAX_DEPTH}")
        nested: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                nested.extend(value.values())
            elif isinstance(value, list):
                nested.extend(value)
        level = [value for value in nested if isinstance(value, dict | list)]


def _reason(problem: Exception) -> str:
    return problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
