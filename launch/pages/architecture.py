"""`docs/architecture.md`: every folder and every file of the program with the first sentence of its
docstring.

Knows the tree and docstrings, which it parses; imports no module that it describes.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("runtime", "policies", "export", "sim", "launch")
WIDTH = 100
HEAD = """# Architecture

<!-- made by `make pages`; edit the modules' docstrings -->

Each arrow points downward only: `launch` may import everything; `export` and `sim` stand side by
side above `policies`; `runtime` is below all of them and is the only one that a robot needs. It
imports no torch, onnx, mujoco, gymnasium, tyro or rich. Every line below is the first sentence of a
module's docstring.
"""


def architecture_page(root: Path) -> str:
    """The page for the tree below `root`."""
    blocks = [HEAD]
    for folder in FOLDERS:
        for package in packages(root / folder):
            name = package.relative_to(root).as_posix()
            level = "##" if name == folder else "###"
            head = first_sentence(package / "__init__.py")
            blocks.append(
                f"{level} {name}/\n\n{_filled(head, '')}\n" if head else f"{level} {name}/\n"
            )
            files = "\n".join(file_lines(package))
            if files:
                blocks.append(files + "\n")
    return "\n".join(blocks)


def packages(folder: Path) -> list[Path]:
    """The folder and every package inside it, sorted."""
    return sorted(path.parent for path in folder.rglob("__init__.py"))


def file_lines(package: Path) -> Iterator[str]:
    """One entry a module."""
    for path in sorted(package.glob("*.py")):
        if path.name != "__init__.py":
            yield _filled(f"- `{path.name}`: {first_sentence(path)}", "  ")


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring; empty where there is none."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
