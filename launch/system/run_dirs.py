"""Run directories: one system each, and what becomes of one whose owner was killed.

The owner of a temporary directory holds a lock on a file in it, so does a supervisor, and so do all
that it started; a lock ends with its process, however that ends. What a killed owner leaves, the
last of its processes removes; where all were killed at once, the next start does. A directory that
a person named stays, without dead sockets. Knows files and locks; no process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trimvla.runtime.bus.claim import sweep
from trimvla.runtime.bus.run_dir import check_run_dir, open_file
from trimvla.runtime.errors import ConfigError

PREFIX = "trimvla-"
OWNER = "temporary"  # locked by the owner of a temporary directory, from before it has this name
LOCK = "lock"  # by the supervisor
MEMBERS = "members"  # by all that it started, together


@contextlib.contextmanager
def temporary_run_dir() -> Iterator[Path]:
    """A directory that is removed at the end; first those are removed whose owners were killed."""
    remove_abandoned()
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with _open(path / f".{OWNER}") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            (path / f".{OWNER}").rename(path / OWNER)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def lock(run_dir: Path) -> BinaryIO:
    """Keep the run directory for one system while the file is open.

    Raises ConfigError if another has it, or if others than this user could write there.
    """
    check_run_dir(run_dir)
    file = _open(run_dir / LOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"expected a run directory of its own for every system; another one runs in {run_dir}"
        ) from None
    return file


@contextlib.contextmanager
def membership(run_dir: Path) -> Iterator[None]:
    """While one of a supervisor's processes runs.

    The last one cleans up behind a supervisor that is gone.
    """
    with _open(run_dir / MEMBERS) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            file.close()
            if all(_is_free(run_dir / name) for name in (OWNER, LOCK, MEMBERS)):
                _clean_up(run_dir)


def remove_abandoned() -> None:
    """Remove temporary run directories of this user that nobody holds any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ConfigError):
            if _is_ours(path) and _is_free(path / OWNER) and _is_free(path / MEMBERS):
                _clean_up(path)


def _clean_up(run_dir: Path) -> None:
    if (run_dir / OWNER).exists():
        shutil.rmtree(run_dir, ignore_errors=True)
    elif run_dir.is_dir():
        sweep(run_dir)


def _is_ours(path: Path) -> bool:
    """Whether it is a temporary run directory of this user: one that `temporary_run_dir` has made
    and locked.
    """
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and (path / OWNER).exists()


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock on this file, or it is not there."""
    if not path.exists():
        return True
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _open(path: Path) -> BinaryIO:
    """A file to be locked, made where there is none."""
    return os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT), "r+b")
