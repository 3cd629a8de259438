"""A topic's address in a run directory, held by one publisher at a time.

Knows files, locks and sockets of the system.

A lock beside the socket (`<topic>.lock`) is taken before the socket is bound and kept as long as
the publisher lives. The system frees it however a process ends, so what a killed one left is taken
over, and what a living one holds never. A topic that allows several senders has as many addresses,
each with a lock of its own; a sender takes the first free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from itertools import takewhile
from pathlib import Path

from trimvla.runtime.bus.run_dir import is_own_socket, open_file
from trimvla.runtime.bus.topics import Topic
from trimvla.runtime.errors import ConfigError

SOCKET_MODE = 0o700  # whatever the directory's mode and the umask are
MAX_IPC_PATH = 107  # bytes, by the operating system
BACKLOG = 100  # connections that may wait, as in ZeroMQ
MAX_OWNER = 256  # bytes of a lock's content that are read
LOCK_SUFFIX = ".lock"
TRIES = 3  # `sweep` of a system that ends holds a lock for a moment
TRY_S = 0.02


class TakenError(ConfigError):
    """Another process publishes here."""


def socket_path(run_dir: Path, topic: Topic, slot: int = 0) -> Path:
    """Where a topic is bound; `slot` counts its senders.

    Raises ConfigError if the path is too long for a socket.
    """
    name = topic.name.replace("/", "-")
    path = run_dir / (f"{name}.{slot}" if slot else name)
    length = len(os.fsencode(path))
    if length > MAX_IPC_PATH:
        raise ConfigError(
            f"expected at most {MAX_IPC_PATH} bytes for the socket's path, got {length}: {path}"
        )
    return path


def endpoint(run_dir: Path, topic: Topic, slot: int = 0) -> str:
    """The same for ZeroMQ."""
    return f"ipc://{socket_path(run_dir, topic, slot)}"


class Claim:
    """The right to publish a topic in a run directory, until `release`."""

    def __init__(self, run_dir: Path, topic: Topic) -> None:
        """Take the first free address in a directory that was checked.

        Raises ConfigError that names who has it.
        """
        taken: TakenError | None = None
        for slot in range(topic.senders):
            self.path = socket_path(run_dir, topic, slot)
            try:
                self._lock = _lock(self.path)
            except TakenError as error:
                taken = taken or error
                continue
            if not _is_listened_to(self.path):
                break
            self._unlock()
            taken = taken or TakenError("a process without a lock, perhaps an older program")
        else:
            who = (
                "no other publisher"
                if topic.senders == 1
                else f"at most {topic.senders} publishers"
            )
            raise TakenError(f"expected {who} of '{topic.name}' in {run_dir}, got {taken}")
        self._inode: tuple[int, int] | None = None

    def listen(self) -> int:
        """Bind a socket, in the place of what a killed owner left; its descriptor is ZeroMQ's to
        close.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
            self.path.unlink(missing_ok=True)
            server.bind(str(self.path))
            self.path.chmod(SOCKET_MODE)  # nobody can connect before `listen`
            self._inode = _inode(self.path)
            server.setblocking(False)
            server.listen(BACKLOG)
            return server.detach()

    def release(self) -> None:
        """Remove the socket if it is still ours; then let others in."""
        if self._inode is not None and _inode(self.path) == self._inode:
            self.path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        # first: who opened it meanwhile sees that it is gone
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock)


def sweep(run_dir: Path) -> None:
    """Remove what killed processes left: sockets that nobody listens on, and their locks.

    Living ones stay.
    """
    for path in sorted(run_dir.iterdir()):
        with contextlib.suppress(ConfigError, FileNotFoundError):
            if path.name.endswith(LOCK_SUFFIX):
                _sweep_one(path.with_name(path.name.removesuffix(LOCK_SUFFIX)))
            elif path.is_socket() and not _is_listened_to(path):
                path.unlink(missing_ok=True)


def _sweep_one(path: Path) -> None:
    descriptor = _lock(path)
    if is_own_socket(path) and not _is_listened_to(path):
        path.unlink(missing_ok=True)
    _lock_path(path).unlink(missing_ok=True)
    os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock an address: the descriptor that holds it. Raises TakenError that names the owner."""
    name = _lock_path(path)
    patience = TRIES
    while True:
        descriptor = open_file(name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, MAX_OWNER, 0).decode(errors="replace").strip()
            os.close(descriptor)
            patience -= 1
            if not patience:
                raise TakenError(f"process {owner or 'that has just started'}") from None
            time.sleep(TRY_S)
            continue
        if _inode(name) == _inode(descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} ({_program()})\n".encode(errors="replace"), 0)
            return descriptor
        os.close(descriptor)  # its last owner removed it between our opening and our locking: again


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + LOCK_SUFFIX)


def _is_listened_to(path: Path) -> bool:
    """Whether somebody listens on a socket.

    Raises ConfigError where there is something else than a socket.
    """
    if not is_own_socket(path):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a living one whose queue is full does not keep us
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


def _inode(file: Path | int) -> tuple[int, int] | None:
    """What a path or descriptor is, whatever it is called; None where there is nothing."""
    try:
        status = os.fstat(file) if isinstance(file, int) else file.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _program() -> str:
    """What runs here, without its options, which may hold secrets."""
    words = takewhile(lambda word: not word.startswith("-"), sys.argv[1:3])
    return " ".join([Path(sys.argv[0]).name or "python", *words])[:120]
