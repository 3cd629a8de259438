"""The public Python API: every name loads when it is asked for, and its example runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trimvla.launch.pages import python_api

ROOT = Path(__file__).parent.parent
SLOW = {"export_policy"}


def names_of(folder: str) -> tuple[str, ...]:
    """The public names of a folder."""
    return tuple(importlib.import_module(f"trimvla.{folder}").PUBLIC)


PLACES = [
    pytest.param(folder, name, marks=[pytest.mark.slow] if name in SLOW else [])
    for folder in python_api.FOLDERS
    for name in names_of(folder)
]
NEEDS = {"policies": ("torch",), "export": ("torch", "onnx"), "sim": ("gymnasium", "mujoco")}
NEEDS["launch"] = (*NEEDS["policies"], *NEEDS["sim"])
NAMES_NEED = {"Recording": ("mcap",)}
BUDGET_S = 0.1  # of the processor
IMPORT = """
import importlib, sys, time
import numpy, msgspec
start = time.process_time()
package = importlib.import_module(f"trimvla.{sys.argv[1]}")
seconds = time.process_time() - start
loaded = {name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split())
assert not loaded, loaded
assert set(package.PUBLIC) <= set(dir(package))
print(seconds)
"""
HEAVY = "torch onnx onnxruntime zmq mujoco gymnasium tokenizers PIL matplotlib rich tyro mcap"


def found(folder: str, name: str) -> object:
    """What a public name stands for."""
    return getattr(importlib.import_module(f"trimvla.{folder}"), name)


@pytest.mark.parametrize("folder", python_api.FOLDERS)
def test_a_folder_is_imported_quickly_and_alone(folder: str) -> None:
    words = [sys.executable, "-c", IMPORT, folder, HEAVY]
    seconds = [float(subprocess.check_output(words)) for _ in range(3)]
    assert min(seconds) < BUDGET_S


@pytest.mark.parametrize("folder", python_api.FOLDERS)
def test_types_and_table_name_the_same(folder: str) -> None:
    """What type checkers see is what is loaded."""
    package = importlib.import_module(f"trimvla.{folder}")
    tree = ast.parse((ROOT / folder / "__init__.py").read_text())
    branches = [node for node in tree.body if isinstance(node, ast.If)]
    [block] = [node for node in branches if ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {
        alias.asname or alias.name: f"{line.module}:{alias.name}"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert typed == {name: f"trimvla.{folder}.{place}" for name, place in package.PUBLIC.items()}
    assert sorted(package.__all__) == sorted(package.PUBLIC)


def test_a_name_that_is_not_public_is_none() -> None:
    runtime = importlib.import_module("trimvla.runtime")
    with pytest.raises(AttributeError, match=r"module 'trimvla.runtime' has no attribute 'Polizy'"):
        _ = runtime.Polizy
    with pytest.raises(ImportError, match="Polizy"):
        exec("from trimvla.runtime import Polizy")


@pytest.mark.parametrize(("folder", "name"), PLACES)
def test_the_example_of_a_name_runs(
    folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty directory and a namespace of its own, as a reader of the page would try it."""
    for module in (*NEEDS.get(folder, ()), *NAMES_NEED.get(name, ())):
        pytest.importorskip(module)
    thing = found(folder, name)
    if isinstance(thing, str):
        return  # a constant; the example of what takes it has it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    examples = python_api.tests(thing)
    assert examples, f"{name} has no example"
    lines = [line for test in examples for line in imports(test)]
    assert any(re.search(rf"import .*\b{name}\b", line) for line in lines)
    report: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert not report, "".join(report)


def imports(test: doctest.DocTest) -> list[str]:
    """The import lines of an example."""
    return [example.source for example in test.examples if " import " in example.source]


def test_our_own_code_uses_no_front_door() -> None:
    """Imports inside the project name the module, so that the map of who imports whom is true."""
    doors = {f"trimvla.{folder}": set(names_of(folder)) for folder in python_api.FOLDERS}
    through = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in python_api.FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and {alias.name for alias in node.names} & doors.get(node.module or "", set())
    ]
    assert not through


def test_a_page_imports_what_is_public() -> None:
    """What the guides and the README have their readers import stands at a front door."""
    doors = {f"trimvla.{folder}": set(names_of(folder)) for folder in python_api.FOLDERS}
    imported = re.compile(r"^from (trimvla[\w.]*) import (.+)$", re.MULTILINE)
    wrong = [
        f"{page.relative_to(ROOT)}: {line.group()}"
        for page in (ROOT / "README.md", *(ROOT / "docs" / "guides").glob("*.md"))
        for line in imported.finditer(page.read_text())
        if not set(re.split(r",\s*", line[2])) <= doors.get(line[1], set())
    ]
    assert not wrong
