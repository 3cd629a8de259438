"""A bundle's directory, held open: what was hashed is what is loaded.

The directory is opened once, every file in it is opened without following a link, checked and
hashed; backends load through the open directory (`place`), which nobody can exchange for another.
Afterwards `check_unchanged` refuses a file that was written or exchanged in between: any such
change leaves its mark on the file's or the directory's change time, which no ordinary user can set.
Knows files; the manifest's contents are `manifest`'s.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trimvla.runtime.bundle.manifest_types import MANIFEST, FileSpec
from trimvla.runtime.errors import BackendError, BundleError
from trimvla.runtime.text_files import LFS_POINTER, describe_pointer

READ_BYTES = 1 << 20
DESCRIPTORS = Path("/proc/self/fd")
CHANGED = "expected it to stay as it is, but it changed while it was loaded"
# file systems keep times in steps of up to 10 ms: two changes within one look like one
CLOCK_STEP_S = 0.02

Mark = tuple[int, int, int, int]  # device, inode, size, change time [ns]


class OpenBundle:
    """One directory, open until `close`."""

    def __init__(self, path: Path) -> None:
        """Open it. BundleError where there is none."""
        self.path = path
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BundleError(f"bundle '{path}': expected a directory, got: {reason}") from None
        self._marks: dict[str, Mark] = {}
        self._listing = _mark(os.fstat(self._directory))
        self._wait_for_clock(self._listing)

    @property
    def place(self) -> Path:
        """A path of the open directory, to load from while it is open."""
        through = DESCRIPTORS / str(self._directory)
        return through if through.is_dir() else self.path

    def read(self, name: str, limit: int) -> bytes:
        """A file's content.

        BundleError where it is missing, no plain file, or larger than `limit` bytes.
        """
        with self._open(name) as descriptor:
            if os.fstat(descriptor).st_size > limit:
                raise BundleError(f"{self.path / name}: expected at most {limit} bytes, got more")
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read(limit)

    def check_listing(self, files: Mapping[str, FileSpec]) -> None:
        """BundleError where the directory holds anything but the manifest and the files that it
        lists.
        """
        for name in sorted(entry.name for entry in self.place.iterdir()):
            if name != MANIFEST and name not in files:
                raise BundleError(
                    f"bundle '{self.path}': expected only files that {MANIFEST} lists, got '{name}'"
                    " too: remove it"
                )

    def check_file(self, name: str, spec: FileSpec, verify_hash: bool) -> None:
        """BundleError where a file is missing, a link, or has another size or (`verify_hash`)
        another sha256.
        """
        path = self.path / name
        with self._open(name) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != spec.bytes:
                head = os.pread(descriptor, 256, 0)
                what = (
                    describe_pointer(head)
                    if head.startswith(LFS_POINTER)
                    else f"{size}: truncated or changed"
                )
                raise BundleError(f"{path}: expected {spec.bytes} bytes, got {what}")
            if verify_hash and (got := _sha256(descriptor)) != spec.sha256:
                raise BundleError(f"{path}: expected sha256 {spec.sha256}, got {got}")

    def check_unchanged(self) -> None:
        """BundleError where anything that was looked at has been written or exchanged since it was
        opened.
        """
        if _mark(os.fstat(self._directory)) != self._listing:
            raise BundleError(f"bundle '{self.path}': {CHANGED}")
        for name, mark in self._marks.items():
            try:
                now = _mark(os.stat(name, dir_fd=self._directory, follow_symlinks=False))
            except OSError:
                now = None
            if now != mark:
                raise BundleError(f"{self.path / name}: {CHANGED}")

    @contextmanager
    def named(self) -> Iterator[Path]:
        """`place`; errors that are raised in the block name the bundle's own path instead."""
        place = str(self.place)
        try:
            yield Path(place)
        except (BundleError, BackendError) as error:
            words = str(error)
            if place == str(self.path) or place not in words:
                raise
            raise type(error)(words.replace(place, str(self.path))) from error

    def close(self) -> None:
        """Let go of the directory."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        """A plain file of the directory, not through a link; its mark is kept before a byte is
        read.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            state = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
            if stat.S_ISLNK(state.st_mode):
                raise BundleError(
                    f"bundle '{self.path}': expected the file '{name}' itself, got a symbolic link:"
                    " copy the bundle with `cp -rL`"
                )
            if not stat.S_ISREG(state.st_mode):
                raise BundleError(
                    f"bundle '{self.path}': expected a plain file '{name}', got something else"
                )
            descriptor = os.open(name, flags, dir_fd=self._directory)
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise BundleError(f"bundle '{self.path}': file '{name}' is missing") from None
            raise BundleError(
                f"{self.path / name}: {getattr(error, 'strerror', None) or error}"
            ) from None
        try:
            mark = _mark(os.fstat(descriptor))
            if self._marks.setdefault(name, mark) != mark:
                raise BundleError(f"{self.path / name}: {CHANGED}")
            self._wait_for_clock(mark)
            yield descriptor
        finally:
            os.close(descriptor)

    def _wait_for_clock(self, mark: Mark) -> None:
        """Until a change from now on would get another time than the last one has."""
        age_s = (time.clock_gettime_ns(time.CLOCK_REALTIME) - mark[3]) / 1e9
        if 0 <= age_s < CLOCK_STEP_S:
            time.sleep(CLOCK_STEP_S - age_s)


def _mark(state: os.stat_result) -> Mark:
    return state.st_dev, state.st_ino, state.st_size, state.st_ctime_ns


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    place = 0
    while block := os.pread(descriptor, READ_BYTES, place):
        digest.update(block)
        place += len(block)
    return digest.hexdigest()
