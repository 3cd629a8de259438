"""The wheel holds every folder: a package missing from the list works in editable mode and vanishes
from the wheel.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("runtime", "export", "policies", "sim", "launch", "bundles")
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    ".".join(path.parent.relative_to(ROOT).parts)
    for folder in FOLDERS[:-1]
    for path in sorted((ROOT / folder).rglob("__init__.py"), key=lambda path: path.parent)
] + ["bundles"]


@pytest.fixture(scope="module")
def project(repo_root: Path) -> dict:
    """pyproject.toml, decoded."""
    msgspec = pytest.importorskip("msgspec")
    return msgspec.toml.decode((repo_root / "pyproject.toml").read_bytes())


@pytest.fixture(scope="module")
def wheel_names(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that is built from a copy of the tracked files, so that nothing is written
    into the tree.
    """
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repo_root, capture_output=True, check=False
    ).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked.decode().strip("\0").split("\0"):
        source = repo_root / name
        if source.is_file() and not source.is_symlink():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(zipfile.ZipFile(next(copy.glob("*.whl"))).namelist())


def test_every_folder_is_a_package_of_the_project(project: dict) -> None:
    setuptools = project["tool"]["setuptools"]
    assert setuptools["packages"] == [f"trimvla.{name}" for name in PACKAGES]
    folders = {f"trimvla.{name}": name.replace(".", "/") for name in PACKAGES}
    assert setuptools["package-dir"] == folders


def test_no_folder_of_modules_is_forgotten(repo_root: Path) -> None:
    with_modules = {path.parent.name for path in repo_root.glob("*/__init__.py")}
    assert with_modules == set(FOLDERS) - {"bundles"}
    with_files = {path.parent for root in FOLDERS for path in (repo_root / root).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in with_files)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_is_in_the_wheel(folder: str, repo_root: Path, wheel_names: set[str]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", folder], cwd=repo_root, capture_output=True, text=True, check=True
    )
    modules = [
        name
        for name in tracked.stdout.split()
        if name.endswith(".py") and (repo_root / name).exists()
    ]
    missing = [name for name in modules if f"trimvla/{name}" not in wheel_names]
    assert not missing


def test_shipped_bundles_are_in_the_wheel(tabletop_bundle: Path, wheel_names: set[str]) -> None:
    missing = [
        f.name
        for f in tabletop_bundle.iterdir()
        if f"trimvla/bundles/tabletop/{f.name}" not in wheel_names
    ]
    assert not missing


def test_every_dependency_has_a_reason(repo_root: Path) -> None:
    lines = (repo_root / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    end = lines.index("[project.scripts]")
    entries = [line for line in lines[start:end] if line.strip().startswith('"')]
    assert entries
    assert all("#" in line for line in entries), [line for line in entries if "#" not in line]


def test_importing_the_runtime_imports_no_torch() -> None:
    code = (
        "import trimvla.runtime.inference.policy, sys;"
        " assert not {'torch', 'mujoco', 'gymnasium', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_changes_begin_with_the_version(project: dict, repo_root: Path) -> None:
    heading = next(
        line for line in (repo_root / "CHANGELOG.md").read_text().splitlines() if line[:3] == "## "
    )
    version = project["project"]["version"]
    assert version.startswith(f"{heading.removeprefix('## ')}.")
