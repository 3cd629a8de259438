"""Workers of one run, and the tests that need the machine for themselves: of several workers, all
others wait while a test marked `alone` runs. And what writes into the project's own folder, as an
editable install does: one at a time.

A test holds a shared lock while it runs, a lone one the exclusive lock. Whoever waits for it holds
the gate meanwhile, so that nobody slips past a lone test that waits.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(place: Path, *, alone: bool) -> Iterator[None]:
    """Wait until a test may go, and keep the others waiting where it is alone; `place` is a folder
    that all workers of the run know.
    """
    with (place / "gate.lock").open("w") as gate, (place / "turns.lock").open("w") as turns:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(turns, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(turns, fcntl.LOCK_UN)  # closing is not enough: who was forked has it open


@contextmanager
def installing(root: Path) -> Iterator[None]:
    """Wait until nobody else installs the project from `root`: it writes its description there."""
    with (root / "pyproject.toml").open("rb") as project:
        fcntl.flock(project, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(project, fcntl.LOCK_UN)
