"""Each guide's code is run as it stands: files are written, commands are run, outputs are compared.

A `python` or `toml` block whose first line names a file becomes that file. Each line `trimvla ...`
of a `sh` block is run, in one folder, as the installed program runs it: nothing of the folder is on
Python's path. The lines of a `text` block must stand in what the command lines before it printed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"# ([\w.-]+\.(?:py|toml|json))\b.*\n")
PROGRAM = "import sys; sys.path.pop(0); from trimvla.launch.cli import program; program()"
TIMEOUT_S = 900


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        found = NAME.match(self.text)
        return found[1] if found and self.language in ("python", "toml", "json") else None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each `trimvla` line, without comments and what runs on in the background."""
        if self.language != "sh":
            return []
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [
            shlex.split(line, comments=True)[1:] for line in lines if line.startswith("trimvla ")
        ]


def blocks(guide: str) -> list[Block]:
    return [Block(*found) for found in FENCE.findall((GUIDES / f"{guide}.md").read_text())]


def run(words: list[str], folder: Path) -> str:
    """Run the program; what it printed. Fails unless it ends with 0."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, f"trimvla {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def follow(guide: str, folder: Path) -> str:
    """Do what the guide says, from its first line to its last; all that was printed."""
    printed = ""
    for block in blocks(guide):
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        for words in block.commands:
            printed += run(words, folder)
        if block.language == "text":
            flat = " ".join(printed.split())
            for line in block.text.splitlines():
                assert " ".join(line.split()) in flat, f"{line}\n{printed}"
    return printed


QUICK = ("own-environment", "own-backend")
SLOW = ("own-robot", "own-token-selector", "own-training-preset")  # a run, an export, a training


@pytest.mark.parametrize(
    "guide", [*QUICK, *(pytest.param(guide, marks=pytest.mark.slow) for guide in SLOW)]
)
def test_a_guide_can_be_followed(guide: str, tmp_path: Path) -> None:
    follow(guide, tmp_path)
