"""Weights in safetensors, one file or shards with an index: names and shapes first, values when
asked for.

What Hugging Face's `save_pretrained` writes. A tensor is mapped when it is read, so that a
checkpoint larger than the memory can be gone through one tensor at a time. Knows no family and no
layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from trimvla.runtime.errors import CheckpointError
from trimvla.runtime.text_files import pointer_in, read_json

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsFiles(Mapping[str, "Tensor"]):
    """All tensors of a folder by name; `shapes` and `place` read no values."""

    def __init__(self, directory: Path) -> None:
        """Open what the folder holds.

        Raises:
            CheckpointError: neither a single file nor an index, a shard is missing or unreadable,
                or the index names a tensor that its shard does not hold.
        """
        self.place = directory / SINGLE
        if (directory / INDEX).is_file() and not self.place.is_file():
            self.place = directory / INDEX
            names = _weight_map(self.place)
            self._files = {shard: _open(directory / shard) for shard in sorted(set(names.values()))}
        else:
            self._files = {SINGLE: _open(self.place)}
            names = dict.fromkeys(self._files[SINGLE].keys(), SINGLE)
        stored = {shard: frozenset(file.keys()) for shard, file in self._files.items()}
        for name, shard in names.items():
            if name not in stored[shard]:
                raise CheckpointError(f"{directory / shard}: expected '{name}', as {INDEX} has it")
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, in the precision of its file."""
        return self._files[self._names[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the file or the index."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor. CheckpointError where its numbers are no floating-point ones."""
        piece = self._files[self._names[name]].get_slice(name)
        if piece.get_dtype() not in FLOATS:
            raise CheckpointError(
                f"{self.place}: expected floating-point weights, got {piece.get_dtype()} for"
                f" '{name}'"
            )
        return tuple(piece.get_shape())


def _open(path: Path) -> Any:  # noqa: ANN401
    try:
        return safe_open(path, framework="pt").__enter__()
    except (OSError, SafetensorError) as error:
        got = pointer_in(path) or error
        raise CheckpointError(f"{path}: expected a safetensors file, got: {got}") from None


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> shard, as an index has it."""
    data = read_json(path, "an index of shards", error=CheckpointError)
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(
            f"{path}: expected 'weight_map' with tensors and their shards, got none"
        )
    for name, shard in names.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path}: expected a file name for '{name}', got {shard!r}")
    return names
