"""The map of the house is kept, and its test sees what it must see: each kind of breach, planted in
a copy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house


@pytest.fixture
def copy(repo_root: Path, tmp_path: Path) -> Path:
    for name in house.ROOTS:
        shutil.copytree(
            repo_root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def plant(path: Path, line: str) -> None:
    path.write_text(path.read_text() + f"\n{line}\n")


def test_the_house_is_in_order(repo_root: Path) -> None:
    assert house.breaches(repo_root) == []


def test_an_upward_import_is_found(copy: Path) -> None:
    plant(copy / "runtime/control/controller.py", "from trimvla.launch import cli")
    upward = "'runtime.control' may not import 'launch' (launch.cli)"
    assert any(upward in found for found in house.breaches(copy))


def test_an_upward_import_inside_a_function_is_found(copy: Path) -> None:
    plant(copy / "policies/nn/dit.py", "def late() -> None:\n    import trimvla.export.verify")
    upward = "'policies.nn' may not import 'export' (export.verify)"
    assert any(upward in found for found in house.breaches(copy))


def test_a_circle_is_found(copy: Path) -> None:
    plant(copy / "runtime/control/safety.py", "from trimvla.runtime.control import controller")
    found = house.breaches(copy)
    assert found
    assert all(line.startswith("circle: ") for line in found)
    circle = {"runtime.control.safety", "runtime.control.controller"}
    assert any(circle <= set(line.split()) for line in found)


@pytest.mark.parametrize("name", ["torch", "gymnasium", "rich"])
def test_what_runtime_may_never_import_is_found(copy: Path, name: str) -> None:
    plant(copy / "runtime/chunks/rtc.py", f"def late() -> None:\n    import {name}")
    [found] = house.breaches(copy)
    assert f"runtime may never import '{name}'" in found


def test_a_crowded_folder_is_found(copy: Path) -> None:
    for number in range(house.MOST_FILES):
        (copy / f"runtime/chunks/more_{number}.py").write_text('"""One more."""\n')
    [found] = house.breaches(copy)
    assert found.startswith("runtime/chunks: ")


def test_a_verb_that_imports_a_verb_is_found(copy: Path) -> None:
    plant(copy / "launch/verbs/cost.py", "from trimvla.launch.verbs import keys")
    [found] = house.breaches(copy)
    assert "a verb imports a verb" in found


def test_a_long_verb_is_found(copy: Path) -> None:
    verb = copy / "launch/verbs/doctor.py"
    short = len(verb.read_text().splitlines())
    plant(verb, "\n".join(["# more work"] * (house.MOST_VERB_LINES - short)))
    [found] = house.breaches(copy)
    assert found == "launch/verbs/doctor.py: 161 lines, a verb has at most 160"


def test_a_parallel_assignment_is_found_and_a_swap_is_none(copy: Path) -> None:
    plant(copy / "runtime/clock.py", "ONE, TWO = 1, 2\nONE, TWO = TWO, ONE\nLOW, HIGH = min, max")
    found = house.breaches(copy)
    assert [line.partition(" ")[2] for line in found] == [
        "one statement a line, but for a swap: ONE, TWO = (1, 2)",
        "one statement a line, but for a swap: LOW, HIGH = (min, max)",
    ]


def test_a_room_that_is_not_on_the_map_is_found(copy: Path) -> None:
    attic = copy / "runtime/attic"
    attic.mkdir()
    (attic / "__init__.py").write_text('"""An attic."""\n')
    assert any("'runtime.attic' is not on the map" in found for found in house.breaches(copy))


def test_results_are_types(repo_root: Path) -> None:
    found = house.any_dicts(repo_root)
    assert len(found) <= house.MOST_ANY_DICTS, found


def test_the_report_counts(repo_root: Path) -> None:
    counted = subprocess.run(
        [sys.executable, "-m", "tests.house"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "arrows_between_rooms: " in counted
