"""The README has one line per file, and its verbs are those of the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimvla.launch import cli

FOLDERS = ("policies", "export", "runtime", "sim", "launch")


@pytest.fixture(scope="module")
def readme(repo_root: Path) -> str:
    return (repo_root / "README.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_has_its_line(folder: str, readme: str, repo_root: Path) -> None:
    section = re.search(rf"^{folder}/ .*\n((?:  .*\n)+)", readme, re.MULTILINE)
    assert section
    listed = {line.split()[0] for line in section[1].splitlines()}
    files = {path.name for path in (repo_root / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in listed if name.endswith(".py")} == files


def test_every_verb_is_described(readme: str) -> None:
    assert all(f"\n| `{verb.name}" in readme for verb in cli.VERBS)
