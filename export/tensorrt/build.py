"""ONNX stages -> engines, through the Python API that TensorRT and TensorRT for RTX share.

The graph's own types are kept: strongly typed networks, never a precision flag, and what was built
is read back. One profile per prompt bucket, each of one shape, so that the builder tunes for
exactly what will run. Needs no torch: it runs on the robot. Knows nothing of memory plans and of
how an engine is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from trimvla.export.tensorrt.read_back import asked_types, matrix_precision, read_back
from trimvla.runtime.backends.tensorrt import engine_cache as engines
from trimvla.runtime.backends.tensorrt.device import Device
from trimvla.runtime.backends.tensorrt.engine_cache import EngineKey, EngineRecord
from trimvla.runtime.backends.tensorrt.library import TrtLibrary, creation_flags
from trimvla.runtime.bundle.manifest import Manifest, StageSpec
from trimvla.runtime.errors import BackendError
from trimvla.runtime.private_files import read_private

WORKSPACE_MB = 512
# TensorRT for RTX times nothing while building: its timing cache does nothing
TUNED_BY_TIMING = ("tensorrt",)
MEANINGLESS = ("", "false")  # the parser's reason where an operator is simply not supported

Report = Callable[[str, str], None]
"""Called with the stage and what is being done with it."""


@dataclass(frozen=True)
class Parsed:
    """A network with the parser and the builder that own its memory."""

    builder: Any
    parser: Any
    network: Any


@dataclass(frozen=True)
class Request:
    """How a bundle is to be built."""

    library: TrtLibrary
    device: Device
    out: Path
    """The engine cache."""
    workspace_bytes: int = WORKSPACE_MB << 20
    check: Callable[[], object] = lambda: None
    """Called once a graph has been parsed: raises where the bundle was changed meanwhile."""


@dataclass(frozen=True)
class Engine:
    """One stage's engine in `Request.out`, built now or before."""

    record: EngineRecord
    cached: bool


def build_bundle(
    directory: Path, manifest: Manifest, request: Request, report: Report
) -> list[Engine]:
    """Build every stage of a bundle, or take it from the cache.

    Args:
        directory: the bundle.
        manifest: its manifest.
        request: how.
        report: called before each step.

    Returns:
        The engines, in the stages' order.

    Raises:
        BackendError: an operator that the library does not take, a failed build, or another
            precision than asked.
    """
    return [build_stage(directory, manifest, name, request, report) for name in manifest.stages]


def build_stage(
    directory: Path, manifest: Manifest, name: str, request: Request, report: Report
) -> Engine:
    """One engine, from the cache or built into it. See `build_bundle`."""
    spec = manifest.stages[name]
    key = engines.stage_key(
        manifest,
        name,
        backend=request.library.backend,
        version=request.library.version,
        device=request.device,
        workspace_bytes=request.workspace_bytes,
        directory=directory,
    )
    engines.prepare(request.out)
    found = engines.find(request.out, key)
    if found is not None:
        return Engine(found, cached=True)
    start = time.monotonic()
    report(name, "parsing")
    path = directory / spec.file
    parsed = parse(request.library, path)
    request.check()
    precision = matrix_precision(request.library.module, parsed.network)
    if precision not in (manifest.precision, "none"):
        raise BackendError(
            f"{path}: expected {manifest.precision} as the manifest says, the graph is in"
            f" {precision}"
        )
    report(name, "building")
    engine = build(request, parsed, spec, key)
    seconds = time.monotonic() - start
    report(name, "reading back")
    answer = read_back(request.library, engine, asked_types(parsed.network), request.device)
    record = EngineRecord(
        key=key,
        sha256=sha256(engine).hexdigest(),
        bytes=len(engine),
        seconds=round(seconds, 3),
        precision=precision,
        read_back=answer,
    )
    engines.store(request.out, engine, record)
    return Engine(record, cached=False)


def parse(library: TrtLibrary, path: Path) -> Parsed:
    """An ONNX file as a strongly typed network; BackendError names the node, its operator and the
    reason.
    """
    trt = library.module
    library.complaints.clear()
    builder = trt.Builder(library.logger)
    network = builder.create_network(creation_flags(trt))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(path)):
        raise BackendError(f"{path}: {parser_problem(library, parser)}")
    if not network.num_outputs:  # the parser takes some files that are no graph without a word
        raise BackendError(f"{path}: {library.title} found no graph in it")
    return Parsed(builder, parser, network)


def parser_problem(library: TrtLibrary, parser: Any) -> str:  # noqa: ANN401 - the library has no types
    """The parser's errors as one instruction about the first node that it does not take."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return library.complaint()
    library.complaints.clear()
    first = next((error for error in errors if error.node_operator()), errors[0])
    reason = " ".join(first.desc().split())
    if reason in MEANINGLESS:
        reason = f"{library.title} does not support it ({first.code().name})"
    if not first.node_operator():
        return f"{library.title} cannot parse the graph: {reason}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"node '{first.node_name()}' (operator {first.node_operator()}): {reason}{more}"


def build(request: Request, parsed: Parsed, spec: StageSpec, key: EngineKey) -> memoryview:
    """The serialised engine; BackendError with the library's own words where it builds none."""
    library = request.library
    config = parsed.builder.create_builder_config()
    config.set_memory_pool_limit(library.module.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    # else the inspector gives names alone
    config.profiling_verbosity = library.module.ProfilingVerbosity.DETAILED
    add_profiles(parsed.builder, config, spec, key.buckets)
    cache = timing_cache_file(request)
    if cache is not None:
        load_timing_cache(config, cache)
    built = parsed.builder.build_serialized_network(parsed.network, config)
    if built is None:
        raise BackendError(
            f"stage '{key.stage}': {library.title} built no engine: {library.complaint()}"
        )
    if cache is not None:
        save_timing_cache(config, cache)
    return memoryview(built).cast("B")  # not copied: engines take gigabytes


def add_profiles(builder: Any, config: Any, spec: StageSpec, buckets: Sequence[int]) -> None:  # noqa: ANN401
    """One profile for each bucket, in which the symbolic axis has that length and no other."""
    if not engines.symbolic_inputs(spec):
        return
    for bucket in buckets:
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shape = tuple(bucket if isinstance(axis, str) else axis for axis in tensor.shape)
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)


def timing_cache_file(request: Request) -> Path | None:
    """Where measured kernel times are kept between builds; None for a library that measures
    none.
    """
    if request.library.backend not in TUNED_BY_TIMING:
        return None
    tied = f"{request.library.version} {request.device.gpu} {request.device.jetpack}"
    return (
        request.out / f"timing-{sha256(tied.encode()).hexdigest()[: engines.DIGEST_LENGTH]}.cache"
    )


def load_timing_cache(config: Any, path: Path) -> None:  # noqa: ANN401 - the library has no types
    """Use the kept times, or begin an empty cache; the library ignores times of another version or
    GPU.
    """
    cache = config.create_timing_cache(read_private(path) if path.exists() else b"")
    config.set_timing_cache(cache, False)


def save_timing_cache(config: Any, path: Path) -> None:  # noqa: ANN401 - the library has no types
    """Keep what the last build measured."""
    engines.prepare(path.parent)
    engines.write_atomically(path, bytes(config.get_timing_cache().serialize()))
