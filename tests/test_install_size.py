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

from tests import tiny_bundle, turns
from tests.test_packaging import FOLDERS

LIMIT_MB = 400
IMPORT_LIMIT_S = 0.5


@pytest.fixture(scope="module")
def fresh_python(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a new environment with only `pip install trimvla` in it."""
    home = tmp_path_factory.mktemp("runtime_only")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--editable", repo_root]
    with turns.installing(repo_root):
        done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the dependencies are not to be had here: {done.stderr.strip()[-300:]}")
    yield python
    shutil.rmtree(home)


def on_disk(folder: Path) -> float:
    """What a folder or file takes on the disk [MB]."""
    every = (folder, *folder.rglob("*"))
    return sum(file.lstat().st_blocks * 512 for file in every if file.is_file()) / 1e6


@pytest.mark.slow
def test_runtime_install_is_small(fresh_python: Path, repo_root: Path) -> None:
    """Everything but pip; our own folders too, which an editable install leaves where they are."""
    site = next(fresh_python.parent.parent.glob("lib/python*/site-packages"))
    installer = ("pip", "pip-")  # part of every environment, not of this install
    entries = [entry for entry in site.iterdir() if not entry.name.startswith(installer)]
    ours = [repo_root / name for name in FOLDERS]
    megabytes = sum(on_disk(entry) for entry in (*entries, *ours))
    assert megabytes < LIMIT_MB, f"expected below {LIMIT_MB} MB, got {megabytes:.0f} MB"


@pytest.mark.slow
def test_runtime_install_has_no_torch_and_imports_fast(fresh_python: Path) -> None:
    code = (
        "import time; t = time.process_time(); import trimvla.runtime.inference.policy, sys;"
        "assert 'torch' not in sys.modules; print(time.process_time() - t)"
    )
    # of the processor: what else the machine does at the time is not counted
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
