"""Decoded TOML -> frozen dataclasses, strictly, with every mistake reported at once.

Knows dataclasses, nested or in tuples; ranges are the components' own `__post_init__`. Reads no
environment variable.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import read_bytes, read_toml

T = TypeVar("T")
MAX_CONFIG_BYTES = 1 << 20


def decode_file(path: Path) -> dict[str, Any]:
    """A TOML file, or msgpack by its suffix. Raises ConfigError where it cannot be read."""
    if path.suffix != ".msgpack":
        return read_toml(path, "TOML", limit=MAX_CONFIG_BYTES)
    try:
        return msgspec.msgpack.decode(
            read_bytes(path, "msgpack", limit=MAX_CONFIG_BYTES), type=dict[str, Any]
        )
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def build(cls: type[T], data: Mapping[str, Any], source: str = "configuration") -> T:
    """A mapping as `cls`; missing fields take their defaults.

    Raises ConfigError with all mistakes, one a line.
    """
    problems: list[str] = []
    value = _convert(cls, data, "", problems)
    if problems:
        raise ConfigError(f"{source}: " + "; ".join(problems))
    return value


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:  # noqa: ANN401 - any typed field
    """`value` as `hint`, noting what is wrong under the dotted name `where`."""
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, problems)
    if _is_tuple_of_dataclasses(hint) and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(
            _convert(item, entry, f"{where}[{i}]", problems) for i, entry in enumerate(value)
        )
    try:
        return msgspec.convert(value, hint, strict=True)
    except msgspec.ValidationError as error:
        problems.append(f"{where}: {str(error)[0].lower()}{str(error)[1:]}")
        return None


def _is_tuple_of_dataclasses(hint: Any) -> bool:  # noqa: ANN401 - any type hint
    return typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0])


def _dataclass(cls: Any, data: Any, where: str, problems: list[str]) -> Any:  # noqa: ANN401 - any dataclass
    """All fields of one dataclass, then the dataclass itself, whose own checks may object."""
    if not isinstance(data, Mapping):
        problems.append(f"{where}: expected a table, got {data!r}")
        return None
    before = len(problems)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    problems += [
        f"{prefix}{key}: unknown, expected one of {', '.join(fields)}"
        for key in data
        if key not in fields
    ]
    problems += [
        f"{prefix}{name}: missing"
        for name, f in fields.items()
        if _required(f) and name not in data
    ]
    values = {
        key: _convert(hints[key], data[key], prefix + key, problems)
        for key in data
        if key in fields
    }
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        problems.append(f"{prefix.rstrip('.')}: {error}" if where else str(error))
        return None


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
