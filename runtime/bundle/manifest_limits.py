"""Ranges of every number in a manifest, checked before anything is allocated, compiled or
opened for it.

A manifest comes from elsewhere: its numbers decide how much memory is taken and how often a graph
is compiled. The limits lie far beyond the largest policy that exists, and far below what a robot's
computer cannot hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from trimvla.runtime.bundle.manifest_types import (
    Manifest,
    PatchSpec,
    PromptSpec,
    StageSpec,
    TensorSpec,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_WORDS = "1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")
GRAPH_SUFFIX = ".onnx"  # another suffix makes a backend read the file as something else
DTYPES = ("float32", "float16", "int64", "int32", "uint8", "int8", "bool")

MAX_IMAGE_SIZE = 2048  # pixels a side
MAX_HORIZON = 1024  # rows of a chunk
MAX_CAMERAS = 16
MAX_DIM = 128  # numbers of an action
MAX_STATE = 1024  # numbers of a state
MAX_BINS = 65536
MAX_STEPS = 1024  # of a sampler
MAX_NUMBER = 1e6  # of a pixel's range
MAX_HZ = 1000.0
MAX_BUCKETS = 16  # every one is compiled
MAX_PROMPT = 8192  # tokens
MAX_ID = 10_000_000  # of a token
MAX_SUFFIX = 64  # tokens
MAX_TEXT = 4096  # characters
MAX_AXES = 8
MAX_AXIS = 1 << 24
MAX_ELEMENTS = 1 << 28  # of one tensor between two stages: 1 GiB in float32
MAX_TENSORS = 64  # of one stage, in and out
MAX_PARTS = 8  # of a policy that were trained anew
RATE_AND_LOSSES = ("learning_rate", "loss_before", "loss_after", "p90_before", "p90_after")
MAX_FRAMES = 1 << 40
MAX_FILES = 64
MAX_FILE_BYTES = 1 << 40


def is_name(text: object) -> bool:
    """Whether a text may name a bundle: it appears in paths, logs, messages and topics."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def problems(manifest: Manifest) -> Iterator[str]:
    """Everything that lies outside its range, the field first."""
    if not is_name(manifest.name):
        yield f"expected {NAME_WORDS} for 'name', got {manifest.name[:80]!r}"
    for field in ("created_utc", "trimvla_version", "precision"):
        yield from _text(f"'{field}'", getattr(manifest, field), 64)
    yield from _text("'family'", manifest.family, 128)
    yield from _images(manifest)
    yield from _state(manifest)
    yield from _action(manifest)
    if manifest.prompt is not None:
        yield from _prompt(manifest.prompt)
    for name, stage in manifest.stages.items():
        yield from _stage(name, stage)
    yield from _files(manifest)
    if manifest.patch is not None:
        yield from _patch(manifest.patch)


def _images(manifest: Manifest) -> Iterator[str]:
    images = manifest.images
    yield from _range("images.size", images.size, 1, MAX_IMAGE_SIZE)
    if images.width is not None:
        yield from _range("images.width", images.width, 1, MAX_IMAGE_SIZE)
        if images.width != images.size and images.aspect != "stretch":
            words = "'stretch' for 'images.aspect' of images that are no squares"
            yield f"expected {words}, got {images.aspect!r}"
    yield from _text("'images.tensor'", images.tensor, 128)
    if not 1 <= len(images.cameras) <= MAX_CAMERAS:
        yield f"expected 1 to {MAX_CAMERAS} entries of 'images.cameras', got {len(images.cameras)}"
        return
    for index, camera in enumerate(images.cameras):
        yield from _text(f"'images.cameras[{index}].name'", camera.name, 128)
    numbers = (*images.pad_value, *images.scale)
    if not all(abs(number) <= MAX_NUMBER for number in numbers):
        fields = "'images.pad_value' and 'images.scale'"
        yield f"expected numbers up to {MAX_NUMBER:g} for {fields}, got {numbers}"
    elif not images.scale[0] < images.scale[1]:
        yield f"expected a range that rises for 'images.scale', got {list(images.scale)}"
    elif images.dtype == "uint8" and images.scale != (0.0, 255.0):
        yield f"expected [0, 255] for 'images.scale' of uint8, got {list(images.scale)}"
    elif images.dtype == "uint8" and images.resize == "bilinear":
        yield "expected float32 for 'images.dtype' where 'images.resize' is bilinear, got uint8"


def _state(manifest: Manifest) -> Iterator[str]:
    state = manifest.state
    flow = manifest.flow
    if flow is not None:
        yield from _range("flow.steps", flow.steps, 1, MAX_STEPS)
    if state is None:
        return
    yield from _range("state.dim", state.dim, 1, MAX_STATE)
    yield from _range("state.padded", state.padded, 1, MAX_STATE)
    yield from _range("state.epsilon", state.epsilon, 0, 1)
    if state.bins is not None:
        yield from _range("state.bins", state.bins, 2, MAX_BINS)
    if len(state.names) > MAX_STATE:
        yield f"expected at most {MAX_STATE} entries of 'state.names', got {len(state.names)}"
        return
    for index, name in enumerate(state.names):
        yield from _text(f"'state.names[{index}]'", name, 128)
    yield from _words("state.units", state.units, MAX_STATE)


def _action(manifest: Manifest) -> Iterator[str]:
    action = manifest.action
    yield from _range("action.horizon", action.horizon, 1, MAX_HORIZON)
    yield from _range("action.dim", action.dim, 1, MAX_DIM)
    yield from _range("action.padded_dim", action.sampled_dim, 1, MAX_DIM)
    yield from _range("action.epsilon", action.epsilon, 0, 1)
    if not (math.isfinite(action.control_hz) and 0 < action.control_hz <= MAX_HZ):
        yield (
            f"expected a rate above 0 and at most {MAX_HZ:g} for 'action.control_hz', got"
            f" {action.control_hz}"
        )
    yield from _text("'action.statistics_key'", action.statistics_key, 256)
    yield from _words("action.names", action.names, MAX_DIM)
    yield from _words("action.units", action.units, MAX_DIM)


def _prompt(prompt: PromptSpec) -> Iterator[str]:
    yield from _text("'prompt.template'", prompt.template, MAX_TEXT)
    yield from _range("prompt.pad_id", prompt.pad_id, 0, MAX_ID)
    if prompt.bos_id is not None:
        yield from _range("prompt.bos_id", prompt.bos_id, 0, MAX_ID)
    if prompt.vocabulary is not None:
        yield from _range("prompt.vocabulary", prompt.vocabulary, 1, MAX_ID)
    if prompt.split_at is not None:
        yield from _text("'prompt.split_at'", prompt.split_at, 64)
    if len(prompt.suffix_ids) > MAX_SUFFIX:
        yield (
            f"expected at most {MAX_SUFFIX} entries for 'prompt.suffix_ids', got"
            f" {len(prompt.suffix_ids)}"
        )
    for index, token in enumerate(prompt.suffix_ids[:MAX_SUFFIX]):
        yield from _range(f"prompt.suffix_ids[{index}]", token, 0, MAX_ID)
    if len(prompt.buckets) > MAX_BUCKETS:
        yield (
            f"expected at most {MAX_BUCKETS} entries for 'prompt.buckets', got"
            f" {len(prompt.buckets)}"
        )
    for index, bucket in enumerate(prompt.buckets[:MAX_BUCKETS]):
        yield from _range(f"prompt.buckets[{index}]", bucket, 2, MAX_PROMPT)


def _stage(name: str, stage: StageSpec) -> Iterator[str]:
    if FILE_NAME.fullmatch(stage.file) is None or not stage.file.endswith(GRAPH_SUFFIX):
        yield (
            f"expected a plain name ending in {GRAPH_SUFFIX} for 'stages.{name}.file', got"
            f" {stage.file[:80]!r}"
        )
    tensors = (*stage.inputs, *stage.outputs)
    if len(tensors) > MAX_TENSORS:
        yield (
            f"expected at most {MAX_TENSORS} inputs and outputs of stage '{name}', got"
            f" {len(tensors)}"
        )
        return
    for tensor in tensors:
        yield from _tensor(f"stages.{name}", tensor)


def _tensor(where: str, tensor: TensorSpec) -> Iterator[str]:
    yield from _text(f"a tensor's name in '{where}'", tensor.name, 128)
    label = f"'{where}', tensor '{tensor.name[:80]}'"
    if tensor.dtype not in DTYPES:
        yield f"expected one of {list(DTYPES)} as dtype of {label}, got {tensor.dtype[:80]!r}"
    if len(tensor.shape) > MAX_AXES:
        yield f"expected at most {MAX_AXES} axes of {label}, got {len(tensor.shape)}"
        return
    elements = 1
    for axis in tensor.shape:
        if isinstance(axis, str):
            yield from _text(f"an axis of {label}", axis, 64)
            elements *= MAX_PROMPT
        elif not 1 <= axis <= MAX_AXIS:
            yield f"expected an axis from 1 to {MAX_AXIS} of {label}, got {axis}"
            return
        else:
            elements *= axis
    if elements > MAX_ELEMENTS:
        yield f"expected at most {MAX_ELEMENTS} elements of {label}, got {list(tensor.shape)}"


def _files(manifest: Manifest) -> Iterator[str]:
    if len(manifest.files) > MAX_FILES:
        yield f"expected at most {MAX_FILES} entries of 'files', got {len(manifest.files)}"
        return
    for name, spec in manifest.files.items():
        if "/" in name or "\\" in name or name in (".", ".."):
            yield (
                f"file {name[:80]!r} lies outside the bundle, or in a folder of it: expected a"
                " plain name in 'files'"
            )
        elif FILE_NAME.fullmatch(name) is None:
            yield (
                "expected a plain name of letters, digits, '.', '_' and '-' in 'files', got"
                f" {name[:80]!r}"
            )
        yield from _range(f"files.{name[:80]}.bytes", spec.bytes, 0, MAX_FILE_BYTES)
        if SHA256.fullmatch(spec.sha256) is None:
            yield (
                f"expected 64 hexadecimal digits for 'files.{name[:80]}.sha256', got"
                f" {spec.sha256[:80]!r}"
            )


def _patch(patch: PatchSpec) -> Iterator[str]:
    record = patch.recovery
    hashes = {
        "sha256": patch.sha256,
        "recovery.weights": record.weights,
        "recovery.plan": record.plan,
    }
    for field, value in hashes.items():
        if SHA256.fullmatch(value) is None:
            yield f"expected 64 hexadecimal digits for 'patch.{field}', got {value[:80]!r}"
    for field in ("policy", "method", "source", "created_utc"):
        yield from _text(f"'patch.recovery.{field}'", getattr(record, field), 256)
    if not 1 <= len(record.parts) <= MAX_PARTS:
        field = "patch.recovery.parts"
        yield f"expected 1 to {MAX_PARTS} entries of '{field}', got {len(record.parts)}"
    for index, part in enumerate(record.parts[:MAX_PARTS]):
        yield from _text(f"'patch.recovery.parts[{index}]'", part, 64)
    for field in ("frames", "own", "held_out", "sentences", "steps", "pictures"):
        yield from _range(f"patch.recovery.{field}", getattr(record, field), 0, MAX_FRAMES)
    yield from _range("patch.recovery.seed", record.seed, 0, 2**63 - 1)
    for field in RATE_AND_LOSSES:
        yield from _range(f"patch.recovery.{field}", getattr(record, field), 0, MAX_NUMBER)
    if record.head is not None:
        yield from _range("patch.recovery.head.noises", record.head.noises, 0, MAX_FRAMES)
        for field in RATE_AND_LOSSES:
            value = getattr(record.head, field)
            yield from _range(f"patch.recovery.head.{field}", value, 0, MAX_NUMBER)
    yield from _range("patch.recovery.minutes", record.minutes, 0, MAX_NUMBER)


def _range(field: str, value: Any, low: float, high: float) -> Iterator[str]:  # noqa: ANN401 - a number, whoever made it
    if not low <= value <= high:
        yield f"expected {low} to {high} for '{field}', got {value}"


def _words(field: str, words: tuple[str, ...], most: int) -> Iterator[str]:
    """Names or units of numbers; a unit may be empty."""
    if len(words) > most:
        yield f"expected at most {most} entries of '{field}', got {len(words)}"
        return
    for index, word in enumerate(words):
        if word or not field.endswith("units"):
            yield from _text(f"'{field}[{index}]'", word, 128)


def _text(field: str, value: str, longest: int) -> Iterator[str]:
    if not 1 <= len(value) <= longest:
        yield f"expected 1 to {longest} characters for {field}, got {len(value)}"
    elif not value.isprintable() and field != "'prompt.template'":
        yield f"expected printable characters for {field}, got {value[:80]!r}"
