"""Parquet files of a data set, read column by column; every fault names the file.

Knows Arrow; knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import pointer_in


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises about a file into a ConfigError."""
    pointer = pointer_in(path) if path.is_file() else None
    if pointer is not None:
        raise ConfigError(f"{path}: expected a Parquet file, got {pointer}")
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        what = "a Parquet file that can be read"
        raise ConfigError(f"{path}: expected {what}, got: {lines[0]:.200}") from None


def read_table(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = (), episode: int | None = None
) -> pyarrow.Table:
    """The columns of a file; only the rows of one episode where it is named.

    Raises ConfigError: there is no such file, it is damaged, or a column is missing.
    """
    if not path.is_file():
        raise ConfigError(f"expected a Parquet file at {path}, got none")
    with reading(path):
        there = pyarrow.parquet.read_schema(path).names
    missing = [name for name in columns if name not in there]
    if missing:
        raise ConfigError(f"{path}: expected the columns {missing}, got {sorted(there)[:20]}")
    wanted = [*columns, *(name for name in optional if name in there)]
    with reading(path):
        rows = None if episode is None else [("episode_index", "==", episode)]
        return pyarrow.parquet.read_table(path, columns=wanted, filters=rows)


def integers(table: pyarrow.Table, column: str, path: Path) -> list[int]:
    """A column of whole numbers. Raises ConfigError for anything else."""
    values = table.column(column).to_pylist()
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"{path}: expected whole numbers for '{column}', got something else")
    return values


def numbers(table: pyarrow.Table, column: str, width: int, path: Path) -> NDArray[np.float64]:
    """A column of lists of numbers as float64[rows, width].

    Raises ConfigError for another length or kind.
    """
    with reading(path):
        values: list[Any] = table.column(column).to_pylist()
    if width == 1:
        values = [value if isinstance(value, list) else [value] for value in values]
    wrong = next((v for v in values if not isinstance(v, list) or len(v) != width), None)
    if wrong is not None:
        got = f"{len(wrong)}" if isinstance(wrong, list) else repr(wrong)[:60]
        raise ConfigError(f"{path}: expected {width} numbers a row for '{column}', got {got}")
    try:
        return np.array(values, np.float64).reshape(len(values), width)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: expected numbers for '{column}', got something else") from None
