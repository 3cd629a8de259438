"""The engine cache: built engines under a key of everything that they are tied to, with a record of
what was built.

An engine is there or it is not: both files are written beside and renamed, the record last, and an
engine that does not match its record is as good as absent. Who builds and who runs ask for the same
key. Knows no backend and reads nothing of an engine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimvla.runtime.backends.tensorrt.device import Device
from trimvla.runtime.bundle.manifest import STATISTICS, TOKENIZER, Manifest, StageSpec, sha256_of
from trimvla.runtime.bundle.onnx_references import referenced_files
from trimvla.runtime.errors import BackendError
from trimvla.runtime.private_files import check_directory, check_file

TEXTS = (TOKENIZER, STATISTICS)  # of a bundle's files, those that no engine is built from
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
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[
            :DIGEST_LENGTH
        ]

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
    """What its matrix products compute in, by the strongly typed network."""
    read_back: dict[str, Any]
    """What was read back from the built engine: `export.engine_precision.read_back`."""


def content_digest(manifest: Manifest) -> str:
    """A short digest of all graphs of a bundle: it identifies a folder of engines, which a name
    never does.
    """
    graphs = sorted(
        (name, file.sha256) for name, file in manifest.files.items() if name not in TEXTS
    )
    return hashlib.sha256(msgspec.json.encode(graphs)).hexdigest()[:DIGEST_LENGTH]


def stage_key(
    manifest: Manifest,
    stage: str,
    *,
    backend: str,
    version: str,
    device: Device,
    workspace_bytes: int = 0,
    directory: Path | None = None,
) -> EngineKey:
    """What the engine of a bundle's stage is tied to, for this library on this device.

    `directory` is the bundle's, where it is at hand: the graph is then asked which other files its
    weights lie in.
    """
    spec = manifest.stages[stage]
    names = {spec.file, f"{spec.file}.data"}
    if directory is not None:
        names |= set(referenced_files(directory / spec.file))
    graph = [file.sha256 for path, file in sorted(manifest.files.items()) if path in names]
    return EngineKey(
        stage=stage,
        onnx_sha256=graph[0]
        if len(graph) == 1
        else hashlib.sha256("".join(graph).encode()).hexdigest(),
        backend=backend,
        version=version,
        gpu=device.gpu,
        jetpack=device.jetpack,
        buckets=manifest.buckets if symbolic_inputs(spec) else (),
        workspace_bytes=workspace_bytes,
    )


def symbolic_inputs(spec: StageSpec) -> list[str]:
    """Inputs with an axis that takes the lengths of the prompt buckets."""
    return [
        tensor.name for tensor in spec.inputs if any(isinstance(axis, str) for axis in tensor.shape)
    ]


def require_in(
    folders: Sequence[Path], wanted: EngineKey, bundle: Path
) -> tuple[Path, EngineRecord]:
    """The first folder with a whole engine for `wanted`, and its record.

    Raises BackendError, as `require`.
    """
    complaints: list[str] = []
    for folder in folders:
        try:
            return folder, require(folder, wanted, bundle)
        except BackendError as error:
            complaints.append(str(error))
    if not complaints:
        raise BackendError(
            f"no folder to look for an engine of stage '{wanted.stage}' in: name one with 'engines'"
        )
    others = "".join(f"; there is none in {folder} either" for folder in folders[1:])
    raise BackendError(complaints[0] + others)


def require(directory: Path, wanted: EngineKey, bundle: Path) -> EngineRecord:
    """The record of a whole engine that was built for `wanted`, with whatever workspace, the
    largest first.

    Raises:
        BackendError: there is none; names what is there instead, and how to build it. Or others may
            write into the folder: an engine is code that runs on the device.
    """
    if directory.exists():
        check_directory(directory)
    records = sorted(
        _records(directory, wanted.stage), key=lambda record: -record.key.workspace_bytes
    )
    for record in records:
        if not differences(record.key, wanted) and find(directory, record.key) is not None:
            return record
    there = [
        ", ".join(differences(record.key, wanted)) or "this device, but damaged"
        for record in records[:3]
    ]
    what = f" (there is one for {'; one for '.join(there)})" if there else ""
    raise BackendError(
        f"no engine of stage '{wanted.stage}' for this device in {directory}{what}: "
        f"run `trimvla build {bundle} --backend {wanted.backend} --out {directory}`"
    )


def differences(key: EngineKey, wanted: EngineKey) -> list[str]:
    """What of `key` keeps its engine from serving `wanted`, in words; the builder's workspace is
    none of it.
    """
    names = [name for name in EngineKey.__struct_fields__ if name != "workspace_bytes"]
    return [
        f"{name} {getattr(key, name)!r} (here {getattr(wanted, name)!r})"
        for name in names
        if getattr(key, name) != getattr(wanted, name)
    ]


def _records(directory: Path, stage: str) -> Iterator[EngineRecord]:
    """Every readable record of a stage."""
    for path in sorted(directory.glob(f"{stage}-*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=EngineRecord)
        except msgspec.DecodeError:
            continue  # `find` reports it when it is built again


def store(directory: Path, engine: bytes | memoryview, record: EngineRecord) -> Path:
    """Write an engine and then its record; returns the engine's path."""
    prepare(directory)
    path = directory / record.key.file
    write_atomically(path, engine)
    write_atomically(
        directory / record.key.record_file,
        msgspec.json.format(msgspec.json.encode(record), indent=1),
    )
    return path


def prepare(directory: Path) -> None:
    """Make the cache's folder, for its user alone.

    BackendError where others may write into one that is there.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_directory(directory)


def find(directory: Path, key: EngineKey) -> EngineRecord | None:
    """The record of a whole engine under this key, or None.

    A damaged one is reported and counts as absent.
    """
    path = directory / key.record_file
    if not path.is_file():
        return None
    for file in (path, directory / key.file):
        if file.exists():
            check_file(file)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except msgspec.DecodeError as error:
        log.warning("%s: not readable (%s), it counts as absent", path, error)
        return None
    problem = _problem(directory / key.file, record)
    if record.key != key or problem:
        log.warning(
            "%s: %s, it counts as absent", directory / key.file, problem or "made for another key"
        )
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
    """Write beside, flush to the disk, rename: a reader sees the old content or the new, never a
    part.
    """
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
