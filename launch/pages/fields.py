"""Fields of dataclasses and msgspec Structs with the texts below them in their source, for pages.

Knows types, defaults and docstrings of fields; not what a page looks like.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    object: "anything",
    Any: "anything",
}
MISSING = (dataclasses.MISSING, msgspec.NODEFAULT)
SHOWN_ENTRIES = 8  # of a default that is a list


@dataclass(frozen=True)
class Field:
    """One field: its name, its type as it was annotated, its default and the text that stands below
    it.
    """

    name: str
    hint: Any
    required: bool
    default: Any
    """Its value; `MISSING` where it is required or made by a factory."""
    text: str


def described(cls: type) -> list[Field]:
    """All fields of a dataclass or a Struct, inherited ones first, in their order."""
    texts = {
        name: text for base in reversed(cls.__mro__) for name, text in texts_below(base).items()
    }
    hints = typing.get_type_hints(cls, include_extras=True)
    listed = (
        dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else msgspec.structs.fields(cls)
    )
    return [
        Field(
            name=field.name,
            hint=hints[field.name],
            required=_required(field.default, field.default_factory),
            default=field.default,
            text=texts.get(field.name, ""),
        )
        for field in listed
    ]


def _required(default: object, factory: object) -> bool:
    return all(any(value is missing for missing in MISSING) for value in (default, factory))


def texts_below(cls: type) -> dict[str, str]:
    """Field name -> the docstring below it in the class's own source, on one line; none for
    built-in classes.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    for line, below in pairwise(body):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[line.target.id] = " ".join(str(below.value.value).split())
    return found


def type_words(hint: Any) -> str:  # noqa: ANN401 - any type hint
    """A type as a reader of a page needs it: the words of a Literal, 'text', 'path, or none'."""
    origin = get_origin(hint)
    inner = get_args(hint)
    if origin is Annotated:
        return type_words(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        parts = [part for part in inner if part is not msgspec.UnsetType]
        return " or ".join("none" if part is type(None) else type_words(part) for part in parts)
    if origin in (tuple, list):
        return f"list of {type_words(inner[0])}" if inner else "list"
    if origin is dict:
        return f"table of {type_words(inner[1])}" if inner else "table"
    return NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def default_words(default: Any) -> str:  # noqa: ANN401 - any default
    """A default as TOML or a command line would have it; empty for none, for False, and for what
    has no short form.
    """
    if default is None or default is False or any(default is missing for missing in MISSING):
        return ""
    if isinstance(default, bool):
        return "true"
    if isinstance(default, (str, Path)):
        return f'"{default}"'
    if isinstance(default, tuple) and 0 < len(default) <= SHOWN_ENTRIES:
        return "[" + ", ".join(default_words(entry) for entry in default) + "]"
    return (
        f"{default:g}"
        if isinstance(default, float)
        else str(default)
        if isinstance(default, int)
        else ""
    )
