"""Weights written one at a time into the file beside a graph: a policy is never held, and a kill
costs little.

Each weight goes from where it lies through the plan and the precision into its place, block by
block. A journal records how many weights of which file have reached the disk; the graph is written
last, with the weights' hash in it, so a graph that is there is complete. Knows slots and sources of
weights; no bundle.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from trimvla.export.streaming.weightless import Skeleton, Slot
from trimvla.policies.cogact.weights import Weights
from trimvla.policies.trimming.kept import Part, part_of
from trimvla.runtime.bundle.manifest import sha256_of
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import BundleError, ConfigError

BLOCK_BYTES = 64 << 20  # converted at a time
SYNC_BYTES = 256 << 20  # written between two entries of the journal
HASH_KEY = "trimvla.weights_sha256"

Report = Callable[[str, int], object]
"""Called with a file's name and the bytes that were written to it, or found there, since the last
call.
"""


class Journal:
    """What of a request is done, as lines of JSON; the first is the request itself.

    Held open, and by one process.
    """

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        """Open or begin it. ConfigError where another process has it."""
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"expected no other export to {path.parent}, got one that is running"
            ) from None
        lines = _read_lines(self._file)
        # tuples are lists by now
        self.fits = not lines or lines[0] == json.loads(json.dumps(request))
        self.fresh = not lines
        self._done = {line["file"]: line["weights"] for line in lines[1:]}
        if self.fresh:
            self._append(request)

    def done(self, file: str) -> int:
        """How many weights of this file are on the disk."""
        return self._done.get(file, 0)

    def note(self, file: str, weights: int) -> None:
        """So many of them are on the disk now."""
        self._done[file] = weights
        self._append({"file": file, "weights": weights})

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _read_lines(file: IO[str]) -> list[dict[str, Any]]:
    """All whole lines; a kill may have left a part of one at the end, which is cut off."""
    file.seek(0)
    text = file.read()
    whole = text[: text.rfind("\n") + 1]
    file.truncate(len(whole.encode()))
    return [json.loads(line) for line in whole.splitlines()]


@dataclass(frozen=True)
class Writer:
    """Writes stages of one policy: `weights` are the dense policy's, `report` is called for every
    weight.
    """

    plan: Plan
    weights: Weights
    journal: Journal
    report: Report = lambda file, count: None
    part: Callable[[str, Plan], Part] = part_of
    """(a slot's weight, plan) -> the dense weight that it is, or is a part of."""

    def write_stage(self, skeleton: Skeleton, path: Path) -> None:
        """Write a stage's weights and then its graph to `path`, checked.

        Raises:
            BundleError: the file of weights is not as long as its slots.
            onnx.checker.ValidationError: the graph is not valid.
        """
        data = path.with_name(f"{path.name}.data")
        self.write_weights(skeleton.slots, data)
        if data.stat().st_size != skeleton.bytes:
            raise BundleError(f"{data}: expected {skeleton.bytes} bytes, got {data.stat().st_size}")
        skeleton.model.metadata_props[HASH_KEY] = sha256_of(data)
        beside = path.with_name(f"{path.name}.partial")
        ir.save(skeleton.model, beside, format="protobuf")
        onnx.checker.check_model(str(beside), full_check=True)
        beside.rename(path)

    def write_weights(self, slots: Sequence[Slot], path: Path) -> None:
        """Write the slots that the journal does not know yet."""
        done = self.journal.done(path.name)
        written = slots[done - 1].end if done else 0
        self.report(path.name, written)
        with path.open("r+b" if done else "wb") as file:
            file.truncate(written)
            synced = written
            for index, slot in enumerate(slots[done:], done + 1):
                file.seek(slot.offset)
                file.writelines(blocks(slot, self.part(slot.weight, self.plan), self.weights))
                self.report(path.name, slot.end - written)
                written = slot.end
                if written - synced >= SYNC_BYTES or index == len(slots):
                    file.flush()
                    os.fsync(file.fileno())
                    self.journal.note(path.name, index)
                    synced = written


def whole(name: str, plan: Plan) -> Part:
    """Of a slot whose weight is a dense one."""
    del plan
    return Part(name)


def blocks(slot: Slot, part: Part, weights: Weights) -> Iterator[memoryview]:
    """A slot's bytes: what is kept of its weight, turned as the graph wants it, in its
    precision.
    """
    with weights.lend(part.name) as whole:
        kept = part.of(whole)
        turned = kept.T if slot.transposed else kept
        if tuple(turned.shape) != slot.shape:
            raise BundleError(
                f"expected {list(slot.shape)}, got {list(turned.shape)} for '{slot.name}'"
            )
        for rows in turned.split(_rows(turned)):
            yield _bytes_of(rows.to(slot.dtype))


def _rows(tensor: Tensor) -> int:
    """Rows of one block."""
    return max(1, BLOCK_BYTES // max(1, tensor[0].nbytes))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
