"""The site that `make docs` builds from these pages: Sphinx, with MyST for Markdown and Furo's
theme.

Warnings are errors there (`sphinx-build -W`): a dead link, a missing heading or a page outside
the side bar fails the build. Nothing comes from elsewhere, and the search works from a file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent

project = "trimvla"
copyright = "the trimvla authors"
release = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[0]

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["conf.py"]
myst_heading_anchors = 6  # the anchors that GitHub gives
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"trimvla {release}"
html_copy_source = False
html_show_sphinx = False

NAVIGATION = """
:::{toctree}
:hidden:
:caption: Guides
:glob:

guides/*
:::

:::{toctree}
:hidden:
:caption: Concepts
:glob:

concepts/*
:::

:::{toctree}
:hidden:
:caption: Reference
:glob:

reference/*
architecture
:::

:::{toctree}
:hidden:
:caption: Results
:glob:

results/index
results/*
:::
"""
"""The side bar; not in `index.md`, which so reads well where Markdown alone is shown."""


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the side bar's table to the front page."""
    if page == "index":
        source[0] += NAVIGATION


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", add_navigation)
