"""A runtime-only install, made in a fresh environment: below 400 MB, without torch, and it imports
quickly.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_bundle

LIMIT_MB = 400
IMPORT_LIMIT_S = 0.5


@pytest.fixture(scope="module")
def fresh_python(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a new environment with only `pip install trimvla` in it."""
    home = tmp_path_factory.mktemp("runtime_only")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--editable", repo_root]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the dependencies are not to be had here: {done.stderr.strip()[-300:]}")
    yield python
    shutil.rmtree(home)


@pytest.mark.slow
def test_runtime_install_is_small(fresh_python: Path) -> None:
    site = next(fresh_python.parent.parent.glob("lib/python*/site-packages"))
    installer = ("pip", "pip-")  # part of every environment, not of this install
    files = (
        f
        for entry in site.iterdir()
        if not entry.name.startswith(installer)
        for f in [entry, *entry.rglob("*")]
    )
    megabytes = sum(f.lstat().st_blocks * 512 for f in files if f.is_file()) / 1e6
    assert megabytes < LIMIT_MB, f"expected below {LIMIT_MB} MB, got {megabytes:.0f} MB"


@pytest.mark.slow
def test_runtime_install_has_no_torch_and_imports_fast(fresh_python: Path) -> None:
    code = (
        "import time; t = time.perf_counter(); import trimvla.runtime.inference.policy, sys;"
        "assert 'torch' not in sys.modules; print(time.perf_counter() - t)"
    )
    seconds = min(float(subprocess.check_output([fresh_python, "-c", code])) for _ in range(3))
    assert seconds < IMPORT_LIMIT_S


@pytest.mark.slow
def test_the_command_line_answers_without_the_extras(fresh_python: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [fresh_python.parent / "trimvla", "--help"], capture_output=True, text=True, check=True
    )
    assert "doctor" in done.stdout
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_a_verb_that_needs_an_extra_names_it(fresh_python: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    for verb, extra in (("demo", "sim"), ("eval", "sim"), ("verify", "export"), ("train", "train")):
        words = [fresh_python.parent / "trimvla", verb, *([] if verb == "train" else [bundle])]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"pip install 'trimvla[{extra}]'" in done.stderr


@pytest.mark.slow
def test_a_bundle_runs_with_the_base_install(fresh_python: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    words = [
        fresh_python.parent / "trimvla",
        "bench",
        bundle,
        "--instruction",
        "pick up the red cube",
        "--rounds",
        "2",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
