"""README and pages: what is generated is current, every link leads somewhere, every command is
one.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimvla.launch import cli
from trimvla.launch.pages.reference import PAGES

ROOT = Path(__file__).parent.parent
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "bundles" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`(trimvla [^`]+)`")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_:@]*|.*[A-Z]{2,}.*|\.\.\.")
OPEN = frozenset("|&;<>")
README_LINES = 120
NOT_EVERYWHERE = "cuda"  # a device that this machine may lack
WIDTH = 100


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PAGES)
def test_a_generated_page_is_what_the_tables_give(path: str) -> None:
    assert (ROOT / path).read_text() == PAGES[path](), "make pages"


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    dead = [link for link in LINK.findall(path.read_text()) if not leads(path, link)]
    assert not dead


def leads(page: Path, link: str) -> bool:
    """Whether a link's file is there, and its heading."""
    if "://" in link:
        return True
    file, _, heading = link.partition("#")
    target = page.parent / file if file else page
    if not target.exists():
        return False
    return not heading or heading in {
        anchor(title) for title in re.findall(r"^#+ (.+)$", target.read_text(), re.M)
    }


def anchor(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def commands(text: str) -> Iterator[str]:
    """Every `trimvla VERB ...` of a page: lines of code blocks, and what stands in the text."""
    for block in FENCE.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = line.strip().removeprefix("$ ").removeprefix("sudo ").removeprefix(".venv/bin/")
            if words.startswith("trimvla "):
                yield words
    for span in SPAN.findall(FENCE.sub("", text)):
        yield " ".join(span.split())


COMMANDS = sorted({command for path in WRITTEN for command in commands(path.read_text())})


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(command: str) -> None:
    problem = wrong_with(command)
    assert not problem


def wrong_with(command: str) -> str:
    """What is wrong with a command line, without running it; empty where nothing is."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)[1:]
    end = next((index for index, word in enumerate(words) if set(word) <= OPEN), len(words))
    words = words[:end]
    name = words[0]
    if PLACEHOLDER.fullmatch(name) or name in ("--help", "--version"):
        return ""
    verb = next((verb for verb in cli.VERBS if verb.name == name), None)
    if verb is None:
        return f"no verb {name}"
    arguments = verb.args()
    names = [field.name.rstrip("_") for field in dataclasses.fields(arguments)]
    known = {"--help", *(f"--{name.replace('_', '-')}" for name in names)}
    asked = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    sections = "--set" in known  # these verbs take --section.key
    unknown = [word for word in asked if word not in known and not (sections and "." in word)]
    if unknown:
        return f"no option {', '.join(unknown)}"
    return parsing_error(verb, words[1:]) if is_whole(words[1:]) else ""


def is_whole(words: list[str]) -> bool:
    """Whether the words behind a verb could be run as they stand: no placeholder, no bare mention
    of an option.
    """
    if not words or words[-1].startswith("--") or {"--help", NOT_EVERYWHERE} & set(words):
        return False
    return not any(PLACEHOLDER.fullmatch(word) for word in words)


def parsing_error(verb: cli.Verb, words: list[str]) -> str:
    """What the program itself says of a line without placeholders; a mention of options alone is
    none.
    """
    if words[0].startswith("--") and any(
        is_required(field) for field in dataclasses.fields(verb.args())
    ):
        return ""
    try:
        cli.parse(verb, words)
    except SystemExit as stop:
        return f"exit status {stop.code}"
    return ""


def is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("trimvla evaluate tabletop", "no verb evaluate"),
        ("trimvla eval BUNDLE --episode 3", "no option --episode"),
        ("trimvla eval tabletop --episodes many", "exit status 2"),
        ("trimvla run robot --policy.threads 2 --task 'pick up'", ""),
    ],
)
def test_a_wrong_command_is_found(command: str, expected: str) -> None:
    assert wrong_with(command) == expected


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text()
    assert [verb.name for verb in cli.VERBS if not re.search(rf"`{verb.name}\b", text)] == []


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_prose_is_wrapped(path: Path) -> None:
    """Tables, images, links and code may be wider."""
    prose = FENCE.sub("", path.read_text()).splitlines()
    wide = [
        line
        for line in prose
        if len(line) > WIDTH and not line.startswith("|") and "](" not in line
    ]
    assert not wide


def test_every_make_target_is_one() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        target
        for path in WRITTEN
        for block in [
            *FENCE.findall(path.read_text()),
            *re.findall(r"`(make [^`]+)`", path.read_text()),
        ]
        for target in re.findall(r"^make ([a-z][\w-]*)", block, re.M)
    }
    assert named <= targets
