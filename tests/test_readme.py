"""The README's verbs are those of the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimvla.launch import cli


@pytest.fixture(scope="module")
def readme(repo_root: Path) -> str:
    return (repo_root / "README.md").read_text()


def test_every_verb_is_described(readme: str) -> None:
    assert all(f"\n| `{verb.name}" in readme for verb in cli.VERBS)
