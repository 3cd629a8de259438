"""The result of a verb: a frozen Struct with whether all is well; `--json` prints its encoding.
Knows no verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import msgspec


class Result(Protocol):
    """What the command line needs of a result; any msgspec Struct with these fields is one."""

    @property
    def ok(self) -> bool:
        """Whether all is well; if not, the exit status is 1."""
        ...


class VerbResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What most results begin with. A field that has a default is left out of the JSON where it has
    that value."""

    ok: bool
    """Whether all went well; where it is false, the exit status is 1."""
    error: str | None = None
    """What went wrong, on one line; left out where nothing did."""


def error_of(result: Result) -> str | None:
    """The error of a result; None where it has none, or all is well."""
    return None if result.ok else getattr(result, "error", None)


def as_json(result: Result) -> str:
    """One JSON object on one line."""
    return json.dumps(as_plain(result))


def as_plain(result: Any) -> Any:  # noqa: ANN401 - whatever a Struct holds
    """Structs, dataclasses, paths and NumPy values as what JSON knows."""
    return msgspec.to_builtins(result, enc_hook=_plain)


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever msgspec does not know
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"expected a value that JSON can hold, got {type(value).__name__}")
