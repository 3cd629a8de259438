"""Log files that stay small: past a limit a file's newest part becomes `<name>.1`, and the file
begins anew.

The writer is another process that appends to what it has open, so nothing is renamed below it.
Knows files and sizes.
"""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

from trimvla.runtime.bus.run_dir import open_file, write_file
from trimvla.runtime.errors import ConfigError

MIB = 1024 * 1024
LIMIT_BYTES = 4 * MIB  # of each of the two files; in between two looks a writer may exceed it
TAIL_BYTES = 64 * 1024  # of what is read to find the last lines


def older(path: Path) -> Path:
    """Where the part before the newest is kept."""
    return path.with_name(f"{path.name}.1")


def remove(path: Path) -> None:
    """Remove a log and its older part, if they are there."""
    for file in (path, older(path)):
        file.unlink(missing_ok=True)


def trim(path: Path, limit_bytes: int | None = None) -> None:
    """Bound a log that somebody appends to. Where a disk is full, the older part is lost."""
    limit = LIMIT_BYTES if limit_bytes is None else limit_bytes
    if not path.exists() or path.stat().st_size <= limit:
        return
    with os.fdopen(open_file(path, os.O_RDWR), "r+b", buffering=0) as file:
        newest = _tail(file, limit)
        # what came meanwhile: hardly anything is lost between here and the next line
        while more := file.read(limit):
            newest = (newest + more)[-limit:]
        file.truncate(0)
    with contextlib.suppress(ConfigError):
        write_file(older(path), newest)


def tail(path: Path, most: int = TAIL_BYTES) -> bytes:
    """The last bytes of a file; nothing of one that is not there."""
    try:
        with path.open("rb", buffering=0) as file:
            return _tail(file, most)
    except FileNotFoundError:
        return b""


def last_lines(path: Path) -> list[str]:
    """The last lines of a log, also of one that has just begun anew."""
    return (tail(older(path)) + tail(path)).decode(errors="replace").strip().splitlines()


def _tail(file: FileIO, most: int) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - most))
    return file.read(most)
