"""Arrays of an uncompressed npz, mapped: only what is looked at is read from the disk.

Knows the format of such archives; knows nothing of what is in them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import pointer_in

WANTED = "a shard of demonstrations (*.npz)"
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


def mapped(path: Path, name: str) -> np.ndarray:
    """An array of the archive, mapped.

    Raises:
        ConfigError: there is no such archive or it has no array of that name, or one that is
            compressed, cut off or of Python objects.
    """
    pointer = pointer_in(path)
    if pointer is not None:
        raise ConfigError(f"{path}: expected {WANTED}, got {pointer}")
    try:
        return _mapped(path, name)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: expected {WANTED}, got: {error}") from error


def checked(
    path: Path, name: str, shape: Sequence[int | None], kinds: str, *, rows: int | None = None
) -> np.ndarray:
    """`mapped`, of this shape and kind.

    Args:
        path: the archive.
        name: the array.
        shape: what stands for the first axis is not looked at; None: any number.
        kinds: letters of `dtype.kind` that will do.
        rows: how many there must be along the first axis.

    Raises:
        ConfigError: names the array, with what was expected and what came.
    """
    array = mapped(path, name)
    wanted = [rows, *shape[1:]]
    fits = array.ndim == len(wanted) and all(
        number in (None, got) for number, got in zip(wanted, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds:
        words = " x ".join("any" if number is None else str(number) for number in wanted)
        names = " or ".join(KINDS[kind] for kind in kinds)
        raise ConfigError(
            f"{path}: expected {names} of {words} for '{name}', got {array.dtype} of"
            f" {' x '.join(map(str, array.shape)) or 'one'}"
        )
    return array


KINDS = {"u": "unsigned integers", "i": "integers", "f": "floating-point numbers", "U": "text"}
"""`dtype.kind` -> its name."""


def _mapped(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            there = sorted(entry.removesuffix(".npy") for entry in archive.namelist())
            raise ConfigError(f"{path}: expected '{name}' in the shard, got {there}")
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ConfigError(f"{path}: expected arrays that are not compressed (numpy.savez)")
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
            header = file.tell()
    if dtype.hasobject:
        raise ConfigError(f"{path}: expected numbers or text for '{name}', got Python objects")
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name_bytes, extra_bytes = np.frombuffer(file.read(4), "<u2")
    start = entry.header_offset + LOCAL_HEADER + int(name_bytes) + int(extra_bytes) + header
    order = "F" if fortran else "C"
    if not np.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)
