"""The site of `make docs`: it is built, it can be searched offline, and what leads nowhere fails
the build.

Sphinx is the one that is installed here (the extra `docs`, which `make setup` brings); the test of
the lowest versions makes an environment of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_lowest import make

NEEDS = ("sphinx", "myst_parser", "furo")
FROM_ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(?:https?:)?//""")
MISSING = [name for name in NEEDS if find_spec(name) is None]
installed = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'trimvla[docs]'"
)


def build(
    root: Path, site: Path, python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    words = [python, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", root / "docs", site]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)


def command_of(makefile: str) -> str:
    """The line of the target `docs` that builds."""
    [line] = [line for line in makefile.splitlines() if "sphinx" in line and line.startswith("\t")]
    return line


def test_make_docs_fails_on_a_warning(repo_root: Path) -> None:
    words = command_of((repo_root / "Makefile").read_text()).split()
    assert {"-W", "--keep-going", "docs", "out/site"} <= set(words)


@pytest.fixture(scope="module")
def site(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built here."""
    place = tmp_path_factory.mktemp("site")
    done = build(repo_root, place)
    assert done.returncode == 0, done.stderr
    return place


@installed
def test_every_page_is_in_the_site_and_in_the_side_bar(site: Path, repo_root: Path) -> None:
    pages = [
        path.relative_to(repo_root / "docs").with_suffix(".html")
        for path in (repo_root / "docs").rglob("*.md")
    ]
    missing = [page for page in pages if not (site / page).is_file()]
    assert not missing
    front = (site / "index.html").read_text()
    assert [
        str(page) for page in pages if page.name != "index.html" and f'href="{page}"' not in front
    ] == []


@installed
def test_the_site_is_searched_offline(site: Path) -> None:
    """The index is a script, so the search works from a file; no page loads anything from
    elsewhere.
    """
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    assert "deadman" in index
    loading = [
        page.name for page in site.rglob("*.html") if FROM_ELSEWHERE.search(page.read_text())
    ]
    assert not loading
    styles = [
        style
        for style in site.rglob("*.css")
        if re.search(r"url\([\"']?(https?:)?//", style.read_text())
    ]
    assert not styles


SMALL = (
    "guides/serving",
    "concepts/bundle",
    "reference/cli",
    "results/index",
    "results/load",
    "architecture",
)
PLANTED = {
    "a page": ("[x](nowhere.md)", "nowhere.md"),
    "a heading": ("[x](guides/serving.md#no-such-heading)", "no-such-heading"),
    "a file": ("[x](../benchmarks/nothing.json)", "nothing.json"),
    "an image": ("![x](nothing.png)", "nothing.png"),
}


@pytest.fixture
def small(repo_root: Path, tmp_path: Path) -> Path:
    """The root of a small project whose pages are in order."""
    shutil.copy(repo_root / "pyproject.toml", tmp_path)
    for page in SMALL:
        path = tmp_path / "docs" / f"{page}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {page}\n\n## A heading\n")
    shutil.copy(repo_root / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text("# All\n\n[fine](guides/serving.md#a-heading)\n")
    return tmp_path


@installed
def test_what_leads_nowhere_fails_the_build(small: Path, tmp_path: Path) -> None:
    """One of each kind in one build; every one of them is reported."""
    done = build(small, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    front = small / "docs" / "index.md"
    front.write_text(
        front.read_text() + "\n" + "\n\n".join(text for text, _ in PLANTED.values()) + "\n"
    )
    (small / "docs" / "lonely.md").write_text("# A page outside the side bar\n")
    done = build(small, tmp_path / "site")
    assert done.returncode != 0
    unseen = [kind for kind, (_, name) in PLANTED.items() if name not in done.stderr]
    assert not unseen
    assert "lonely.md" in done.stderr


@pytest.mark.slow
def test_the_lowest_versions_build_it(repo_root: Path, tmp_path: Path) -> None:
    programs = make(tmp_path / "venv", repo_root, ("docs",))
    done = build(repo_root, tmp_path / "site", programs / "python")
    assert done.returncode == 0, done.stderr
