"""The engine cache: built engines under a key of everything that they are tied to, with a record of what was built.

An engine is there or it is not: both files are written beside and renamed, the record last, and an engine that does not
match its record is as good as absent. Knows no backend and reads nothing of an engine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from trimvla.runtime.manifest import sha256_of

DIGEST_LENGTH = 16  # hexadecimal digits in a file's name

log = logging.getLogger("trimvla.engines")


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine is tied to: another value of any field is another engine."""

    stage: str
    onnx_sha256: str
    backend: str
    version: str
    """Of the library."""
    gpu: str = "none"
    jetpack: str = "none"
    buckets: tuple[int, ...] = ()
    """Prompt lengths that it has a profile for."""
    workspace_bytes: int = 0

    @property
    def digest(self) -> str:
        """The fields as a short name."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:DIGEST_LENGTH]

    @property
    def file(self) -> str:
        """The engine's name in a cache."""
        return f"{self.stage}-{self.digest}.engine"

    @property
    def record_file(self) -> str:
        """Its record's name."""
        return f"{self.stage}-{self.digest}.json"


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was built under a key."""

    key: EngineKey
    sha256: str
    bytes: int
    seconds: float
    """Parsing and building."""
    precision: str
    """What its matrix products compute in, as the strongly typed network says."""
    read_back: dict[str, Any]
    """What the built engine says of itself: `export.engine_precision.read_back`."""


def store(directory: Path, engine: bytes | memoryview, record: EngineRecord) -> Path:
    """Write an engine and then its record; returns the engine's path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / record.key.file
    write_atomically(path, engine)
    write_atomically(directory / record.key.record_file, msgspec.json.format(msgspec.json.encode(record), indent=1))
    return path


def find(directory: Path, key: EngineKey) -> EngineRecord | None:
    """The record of a whole engine under this key, or None. A damaged one is reported and counts as absent."""
    path = directory / key.record_file
    if not path.is_file():
        return None
    try:
        record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except msgspec.DecodeError as error:
        log.warning("%s: not readable (%s), building again", path, error)
        return None
    problem = _problem(directory / key.file, record)
    if record.key != key or problem:
        log.warning("%s: %s, building again", directory / key.file, problem or "made for another key")
        return None
    return record


def _problem(path: Path, record: EngineRecord) -> str | None:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != record.bytes:
        return f"expected {record.bytes} bytes, got {path.stat().st_size}"
    got = sha256_of(path)
    return None if got == record.sha256 else f"expected sha256 {record.sha256}, got {got}"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write beside, flush to the disk, rename: a reader sees the old content or the new, never a part."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
