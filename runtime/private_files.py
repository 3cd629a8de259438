"""Files that are trusted like code, such as engines: only their user, or root, may be able to write
them.

A shared cache in which others can write is a way to run code as somebody else. Knows owners and
modes, and no content.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from trimvla.runtime.errors import BackendError

MAX_PRIVATE_BYTES = 1 << 30


def check_directory(path: Path) -> None:
    """BackendError where anybody else can write into a directory, or owns it."""
    try:
        state = path.stat()
    except OSError as error:
        raise BackendError(f"{path}: expected a folder, got: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise BackendError(f"{path}: expected a folder, got something else")
    _check(path, state, "folder")


def check_file(path: Path) -> None:
    """BackendError where a file is a link or no plain file, or anybody else can write it."""
    try:
        state = path.lstat()
    except OSError as error:
        raise BackendError(f"{path}: expected a file, got: {error.strerror}") from None
    if not stat.S_ISREG(state.st_mode):
        got = "a symbolic link" if stat.S_ISLNK(state.st_mode) else "something else"
        raise BackendError(f"{path}: expected a plain file, got {got}")
    _check(path, state, "file")


def read_private(path: Path) -> bytes:
    """A private file's content, of the very file that was checked.

    BackendError as `check_file` raises it.
    """
    check_file(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        _check(path, state, "file")
        if state.st_size > MAX_PRIVATE_BYTES:
            raise BackendError(
                f"{path}: expected at most {MAX_PRIVATE_BYTES} bytes, got {state.st_size}"
            )
        return file.read()


def _check(path: Path, state: os.stat_result, what: str) -> None:
    """A group may write where it is the user's own, as on systems that give every user one."""
    owners = (os.geteuid(), 0)
    if state.st_uid not in owners:
        raise BackendError(
            f"{path}: expected a {what} of this user, got one of user {state.st_uid}"
        )
    shared = stat.S_IWOTH if state.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
    if state.st_mode & shared:
        mode = oct(stat.S_IMODE(state.st_mode))[2:]
        raise BackendError(
            f"{path}: expected a {what} that only its user can write, got mode {mode}: run `chmod"
            f" go-w {path}`"
        )
