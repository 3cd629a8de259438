"""`docs/reference/python.md`: every public name with its signature, its docstring and its example.

Public is what stands in `PUBLIC` of a folder's `__init__`. Knows docstrings as Python has them; the
examples are run by tests/test_python_api.py.
"""

from __future__ import annotations

import dataclasses
import doctest
import enum
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Protocol

FOLDERS = ("runtime", "policies", "export", "sim", "launch")
WIDTH = 100
SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Example:")
HEAD = (
    "# Python",
    "What is meant to be imported. A name loads its module at its first use: `import "
    "trimvla.runtime` costs a few milliseconds and never brings torch. Everything that is not on "
    "this page is internal: other modules, and names in them, may change in any version. "
    "Arguments, results and errors stand in the docstrings: `help(Policy.infer)`. Errors raised "
    "on purpose are a `TrimvlaError`.",
)


def blocks() -> Iterator[str]:
    """The page's blocks: headings, paragraphs and code."""
    yield from HEAD
    for folder in FOLDERS:
        package = importlib.import_module(f"trimvla.{folder}")
        yield f"## trimvla.{folder}"
        yield from prose(inspect.getdoc(package) or "")
        for name in package.PUBLIC:
            yield from entry(name, getattr(package, name))


def entry(name: str, thing: Any) -> Iterator[str]:  # noqa: ANN401 - whatever is public
    """One public name."""
    yield f"### {name}"
    if not callable(thing):
        yield f"`{thing!r}`"
        return
    yield f"```python\n{name}{signature(thing)}\n```"
    yield from prose(inspect.getdoc(thing) or "")
    if inspect.isclass(thing):
        yield from methods(name, thing)
    for example in examples(thing):
        yield f"```python\n{example}\n```"


def prose(text: str) -> Iterator[str]:
    """A docstring's paragraphs up to its sections, each on one line."""
    for part in text.split("\n\n"):
        if part.lstrip().startswith((*SECTIONS, ">>>")):
            return
        yield " ".join(part.split())


def methods(name: str, kind: type) -> Iterator[str]:
    """The public methods and properties of a class's own, an entry each."""
    for method, thing in vars(kind).items():
        called = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
        if method.startswith("_") or not (callable(called) or isinstance(called, property)):
            continue
        documented = inspect.getdoc(called)
        if not documented:
            continue
        shown = "" if isinstance(called, property) else signature(called)
        first = next(prose(documented), "")
        line = f"- **`{name}.{method}{shown}`**: {first}"
        yield textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def signature(thing: Any) -> str:  # noqa: ANN401 - a class or a function
    """Names and defaults of what it takes, without types and `self`; nothing for a protocol."""
    if inspect.isclass(thing) and (_is_protocol(thing) or issubclass(thing, enum.Enum | Exception)):
        return ""
    if inspect.isclass(thing) and (inspect.getdoc(thing.__init__) or "").startswith("Use "):
        return ""  # it is not made by calling it: `Policy.load`
    found = inspect.signature(thing)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=_default(parameter.default))
        for parameter in found.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    bare = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return str(bare)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A default in a signature, written as its text."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _default(value: Any) -> Any:  # noqa: ANN401 - any default
    """A default as it is shown: what is made for each call is an ellipsis."""
    plain = isinstance(value, str | int | float | bool | tuple | None)
    return value if plain or value is inspect.Parameter.empty else _Shown("...")


def _is_protocol(kind: type) -> bool:
    return Protocol in kind.__bases__


def examples(thing: Any) -> list[str]:  # noqa: ANN401 - a class or a function
    """The examples of a docstring, with their results; those of a class's methods too."""
    found: list[str] = []
    for test in tests(thing):
        lines: list[str] = []
        for example in test.examples:
            first, *rest = example.source.rstrip("\n").split("\n")
            lines += [f">>> {first}", *(f"... {line}" for line in rest)]
            lines += example.want.rstrip("\n").split("\n") if example.want else []
        found.append("\n".join(lines))
    return found


def tests(thing: Any) -> list[doctest.DocTest]:  # noqa: ANN401 - a class or a function
    """Its doctests, each with a namespace of its own."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(thing, thing.__name__, globs={}) if test.examples]
