"""`docs/reference/results.md`: each verb's result with `--json`, from the types of the results.

Knows the table of verbs, return types and the texts below their fields; runs no verb.
"""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterator

import msgspec

from trimvla.launch import cli
from trimvla.launch.pages.fields import Field, described, type_words
from trimvla.launch.pages.markdown import entry, page, paragraphs

HEAD = (
    "# Results",
    "Every verb takes `--json` and then prints one JSON object as the last line of stdout; its "
    "fields are listed below. `ok` is true where all went well; where it is false, the exit "
    "status is 1. A verb that fails before it has a result prints `ok` and `error` alone.",
)


def results_page() -> str:
    """Every verb's result; types that several verbs use stand at the end."""
    types = {verb.name: list(inner_types(result_types(verb))) for verb in cli.VERBS}
    users = Counter(kind for kinds in types.values() for kind in kinds)
    lines: list[str] = [*HEAD]
    for verb in cli.VERBS:
        outer = result_types(verb)
        lines.append(f"## {verb.name}")
        for kind in types[verb.name]:
            if kind in outer:
                lines += type_lines(kind, title=len(outer) > 1)
            elif users[kind] == 1:
                lines += type_lines(kind)
    lines.append("## Types that several verbs use")
    for kind in sorted((k for k, count in users.items() if count > 1), key=lambda k: k.__name__):
        lines += type_lines(kind)
    return page(lines)


def type_lines(kind: type, *, title: bool = True) -> Iterator[str]:
    """Name, docstring and fields."""
    if title:
        yield f"### {kind.__name__}"
    yield from paragraphs(kind.__doc__ or "")[:1]
    yield from map(result_field, described(kind))


def result_field(field: Field) -> str:
    """One field, as a list's entry."""
    kind = type_words(field.hint)
    return entry(field.name, kind if field.required else f"{kind}, may be left out", field.text)


def result_types(verb: cli.Verb) -> list[type]:
    """What a verb's `run` returns: one type, or several."""
    hint = typing.get_type_hints(verb.load().run)["return"]
    return [kind for kind in typing.get_args(hint) or (hint,) if is_record(kind)]


def inner_types(kinds: list[type]) -> Iterator[type]:
    """These types and all that their fields hold, each once, in the order in which they are met."""
    left = list(kinds)
    seen: set[type] = set()
    while left:
        kind = left.pop(0)
        if kind in seen:
            continue
        seen.add(kind)
        yield kind
        left += [inner for field in described(kind) for inner in records_in(field.hint)]


def records_in(hint: object) -> Iterator[type]:
    """Structs and dataclasses in a type hint."""
    if is_record(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from records_in(inner)


def is_record(kind: object) -> typing.TypeGuard[type]:
    """Whether it is a Struct or a dataclass."""
    if not isinstance(kind, type):
        return False
    return issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)
