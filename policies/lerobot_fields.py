"""Fields of a checkpoint's config.json, each with an error that names file and field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimvla.runtime.errors import CheckpointError
from trimvla.runtime.text_files import read_json


def has_type(directory: Path, name: str) -> bool:
    """Whether a folder's config.json is LeRobot's, of this type of policy."""
    path = directory / "config.json"
    if not path.is_file():
        return False
    config = read_json(path, "a policy's config", error=CheckpointError)
    return isinstance(config, dict) and config.get("type") == name


@dataclass(frozen=True)
class Fields:
    """A config, with errors that name file and field."""

    path: Path
    config: Mapping[str, Any]

    def check(self, name: str, allowed: tuple[Any, ...]) -> None:
        """CheckpointError where the field is there and is something else."""
        if self.config.get(name, allowed[0]) not in allowed:
            words = repr(allowed[0]) if len(allowed) == 1 else f"one of {list(allowed)}"
            raise CheckpointError(
                f"{self.path}: expected {words} for '{name}', got {self.config[name]!r}"
            )

    def table(self, name: str) -> Mapping[str, Any]:
        """A table; empty where it is not there."""
        value = self.config.get(name) or {}
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{self.path}: expected a table for '{name}', got {type(value).__name__}"
            )
        return value

    def features(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """Features by name."""
        table = self.table(name)
        if not all(isinstance(feature, dict) for feature in table.values()):
            raise CheckpointError(f"{self.path}: expected tables of type and shape in '{name}'")
        return table

    def dim(self, name: str, feature: str) -> int:
        """Numbers of a feature that is a vector."""
        found = self.features(name)
        shape = found.get(feature, {}).get("shape")
        if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int):
            raise CheckpointError(
                f"{self.path}: expected '{feature}' with a shape of one number in '{name}', got "
                f"{shape if feature in found else sorted(found)}"
            )
        return shape[0]

    def count(self, name: str, default: int | None = None) -> int:
        """A number from 1 on."""
        value = self.config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{self.path}: expected a number from 1 on for '{name}', got {value!r}"
            )
        return value

    def number(self, name: str, default: float) -> float:
        """A number above 0."""
        value = self.config.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise CheckpointError(
                f"{self.path}: expected a number above 0 for '{name}', got {value!r}"
            )
        return float(value)
