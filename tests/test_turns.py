"""Of several workers, the others wait while a test that needs the machine for itself runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import time
from pathlib import Path
import pytest

def runs(name):
    with (Path(__file__).parent / "events").open("a", buffering=1) as events:
        events.write(f"begin {name}\\n")
        time.sleep(0.1)
        events.write(f"end {name}\\n")

@pytest.mark.parametrize("number", range(5))
def test_beside_others(number):
    runs("{file}")

@pytest.mark.alone
def test_alone():
    runs("alone {file}")
"""


def test_nobody_runs_beside_a_lone_test(repo_root: Path, tmp_path: Path) -> None:
    """With this project's own hook, over real workers."""
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(TESTS.replace("{file}", name))
    words = ["-n", "2", "--dist", "loadfile", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    options = ["-q", "-o", "markers=alone", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *options, str(tmp_path)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "12 passed" in done.stdout, done.stdout + done.stderr
    events = (tmp_path / "events").read_text().splitlines()
    for name in ("alone one", "alone two"):
        begin = events.index(f"begin {name}")
        assert events[begin + 1] == f"end {name}"
        running = [event.split() for event in events[:begin]]
        began = sum(kind == "begin" for kind, *_ in running)
        assert began == len(running) - began  # all that had begun had ended
