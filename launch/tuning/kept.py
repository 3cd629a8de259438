"""What a search keeps on disk, so that a killed one goes on: small results by name.

One file a kind, JSON lines, each written whole; a line that was cut off is not counted. Knows
names and numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class _Line(msgspec.Struct, Generic[T], frozen=True):
    name: str
    value: T


class Kept(Generic[T]):
    """Results of one kind."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        """Read back what is there; the folder must exist."""
        self.path = path
        self.found: dict[str, T] = {}
        decoder = msgspec.json.Decoder(_Line[kind])
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                decoded = decoder.decode(line)
            except msgspec.DecodeError:
                continue
            self.found[decoded.name] = decoded.value

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def __getitem__(self, name: str) -> T:
        return self.found[name]

    def add(self, name: str, value: T) -> T:
        """Keep one more."""
        self.found[name] = value
        with self.path.open("ab") as file:
            file.write(b"\n" if self._is_cut_off() else b"")
            file.write(msgspec.json.encode(_Line(name, value)) + b"\n")
        return value

    def _is_cut_off(self) -> bool:
        """Whether the file ends within a line."""
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"
