"""Run directories: which may be trusted, and how files in them are opened.

Knows paths, owners and modes; no socket.

Whoever can change what a run directory's path leads to can put a socket of theirs in the place of
ours, and then send actions. So the directory, everything in it and every directory and link on the
way to it must belong to root or to this user, and others must not be able to write there; the only
exception is a sticky directory such as /tmp, where others can neither remove nor replace what is
not theirs. Files are never opened through a link.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

from trimvla.runtime.errors import ConfigError

MAX_LINKS = 40  # on the way to a directory, as in the kernel
ROOT = 0
PRIVATE = 0o600


def check_run_dir(run_dir: Path, what: str = "run directory") -> None:
    """Raise ConfigError unless this user and root alone decide what is in a directory, and it
    exists.
    """
    place = _resolve(run_dir, what)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"expected a directory, got a file for the {what} {run_dir}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{status.st_mode & 0o7777:04o}"
        raise ConfigError(
            f"expected a directory that its owner alone may write to, got {mode} for {run_dir};"
            " chmod 700 it"
        )
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                # removed in between, as running systems do
                with contextlib.suppress(FileNotFoundError):
                    _check_owner(Path(entry.path), entry.stat(follow_symlinks=False))
    except OSError as error:
        raise ConfigError(f"{what} {run_dir}: cannot be read: {error.strerror}") from None


def open_file(path: Path, flags: int, mode: int = PRIVATE) -> int:
    """Descriptor of a regular file that is this user's alone; it is closed by the caller.

    A link is never followed and a pipe never waited for. Give no O_TRUNC: what is opened is checked
    first.

    Raises:
        ConfigError: for a link, a second name of another file, somebody else's file, or what is no
            file.
        OSError: for what the system refuses otherwise, such as FileNotFoundError.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        if path.is_symlink():
            raise ConfigError(f"expected a file of our own, got a link for {path}") from None
        if path.exists() and not path.is_file():
            raise ConfigError(
                f"expected a file of our own, got another kind of thing for {path}"
            ) from None
        raise error
    try:
        _check_file(path, os.fstat(descriptor))
    except ConfigError:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: Path) -> bytes:
    """All of a file of our own. Raises like `open_file`."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as source:
        return source.read()


def read_own(path: Path, what: str, most: int, *, alone: bool = False) -> bytes:
    """The first `most` bytes of a file of our own in which `what` is expected.

    Args:
        path: the file, opened as `open_file` does it.
        what: for the error's words.
        most: how many bytes are read.
        alone: whether nobody else may read it, as with secrets.

    Raises ConfigError, which never holds the content.
    """
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as source:
            mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
            content = source.read(most)
    except OSError as error:
        raise ConfigError(f"expected {what} in {path}, got: {error.strerror}") from None
    if alone and mode & 0o077:
        raise ConfigError(f"{path}: expected a file for its owner alone (0600), got {mode:04o}")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Put a new file in the place of an old one, whole or not at all.

    Raises ConfigError if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        with os.fdopen(open_file(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as sink:
            sink.write(content)
        draft.replace(path)  # a link at `path` is replaced, not followed
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def is_own_socket(path: Path) -> bool:
    """Whether there is a socket, no link to one.

    Raises ConfigError for somebody else's, and for what is no socket.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    _check_owner(path, status)
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"expected a socket or nothing at {path}, got {_kind(status.st_mode)}")
    return True


def _resolve(run_dir: Path, what: str) -> Path:
    """The directory itself, without links; every step on the way is checked."""
    place = Path("/")
    links = 0
    pending = list(reversed(run_dir.absolute().parts[1:]))
    _check_step(place, what)
    while pending:
        name = pending.pop()
        if name == "..":
            place = place.parent
            continue
        step = place / name
        status = _check_step(step, what, final=not pending)
        if not stat.S_ISLNK(status.st_mode):
            place = step
            continue
        links += 1
        if links > MAX_LINKS:
            raise ConfigError(f"{what} {run_dir}: expected at most {MAX_LINKS} links on the way")
        target = step.readlink()
        place = Path("/") if target.is_absolute() else place
        pending += [part for part in reversed(target.parts) if part != "/"]
    return place


def _check_step(step: Path, what: str, *, final: bool = False) -> os.stat_result:
    """One part of the path: root's or ours, and not to be written to by others unless it is
    sticky.
    """
    try:
        status = step.lstat()
    except FileNotFoundError:
        raise ConfigError(f"expected an existing {what}, got nothing at {step}") from None
    except OSError as error:
        raise ConfigError(f"{step}: cannot be looked at: {error.strerror}") from None
    _check_owner(step, status)
    if final or not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_ISVTX:
        return status
    by_group = status.st_mode & stat.S_IWGRP and not _is_private_group(step, status.st_gid)
    if by_group or status.st_mode & stat.S_IWOTH:
        mode = f"{status.st_mode & 0o7777:04o}"
        raise ConfigError(
            f"expected directories on the way that others cannot write to, got {mode} for {step}"
        )
    return status


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (ROOT, os.geteuid()):
        us = _user(os.geteuid())
        them = _user(status.st_uid)
        raise ConfigError(
            f"expected {path} to belong to root or to {us}, who runs this; it belongs to {them}"
        )


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"expected a file of our own, got {_kind(status.st_mode)} for {path}")
    _check_owner(path, status)
    if status.st_nlink > 1:
        raise ConfigError(f"expected a file of our own, got another file's second name for {path}")


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    return (
        "a directory"
        if stat.S_ISDIR(mode)
        else "a file"
        if stat.S_ISREG(mode)
        else "a pipe or device"
    )


def _is_private_group(path: Path, gid: int) -> bool:
    """Whether a group is one user's own, as on systems whose files are group-writable by default.

    An access list hides behind the group's bits, so there must be none.
    """
    try:
        group = grp.getgrgid(gid)
        user = pwd.getpwuid(os.geteuid())
        listed = "system.posix_acl_access" in os.listxattr(path)
    except (KeyError, OSError):
        return False
    own = gid == user.pw_gid and group.gr_name == user.pw_name
    return own and not set(group.gr_mem) - {user.pw_name} and not listed


def _user(uid: int) -> str:
    """A user's name, or the number where there is no name."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
