"""Blocks of a generated page: prose, list entries of fields, headings. Knows what a page looks
like, and no table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from trimvla.launch.pages.fields import Field, default_words, type_words
from trimvla.launch.pages.python_api import prose

WIDTH = 100
NOTE = "<!-- made by `make pages`; edit the code that it comes from -->"


def setting(field: Field) -> str:
    """One field, as a list's entry."""
    return entry(field.name, words(field), field.text)


def words(field: Field, flags: bool = False) -> str:
    """Type and default of a field, as a reader needs them."""
    kind = type_words(field.hint)
    if flags and kind == "true or false":
        return "flag"
    if field.required:
        return f"{kind}, required"
    default = default_words(field.default).strip('"' if flags else "")
    return f"{kind}, default `{default}`" if default else kind


def entry(name: str, kind: str, text: str) -> str:
    """`- **name** (kind): text`, wrapped."""
    line = f"- **`{name}`** ({kind}){': ' + text if text else ''}"
    return textwrap.fill(
        line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs, each on one line; without its example."""
    return list(prose(textwrap.dedent(text)))


def page(lines: Iterable[str]) -> str:
    """Blocks as a page: prose wrapped, an empty line between blocks but not list entries."""
    text = ""
    before = ""
    for line in lines:
        block = line if line.startswith(("|", "- ", "#", "```")) else filled(line)
        together = before.startswith("- ") and block.startswith("- ")
        text += ("" if not text else "\n" if together else "\n\n") + block
        before = block
        if block.startswith("# "):
            text += f"\n\n{NOTE}"
    return text + "\n"


def filled(line: str) -> str:
    """Prose, wrapped."""
    return textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
