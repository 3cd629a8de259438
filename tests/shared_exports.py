"""Bundles of reference folders, each exported once in a run, whichever test asks first."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from trimvla.launch.cli import main


def exported(folder: Path, factory: pytest.TempPathFactory) -> Path:
    """The bundle that `trimvla export FOLDER` writes; for reading alone, as others read it too.

    Other workers of the run wait while one exports; where that fails, each sees it fail.
    """
    base = factory.getbasetemp()
    run = base.parent if base.name.startswith("popen-") else base  # a worker's own is inside
    place = run / "exports"
    place.mkdir(exist_ok=True)
    bundle = place / folder.name
    with (place / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bundle.exists():
            assert main(["export", str(folder), "--out", str(bundle)]) == 0
    return bundle
