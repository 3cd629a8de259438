"""What a verb will write, checked before it does anything: minutes of work end in a file, not in a
traceback.

Tries each place by making a nameless file in the nearest folder that exists; makes and changes
nothing that stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Output:
    """One file or folder that an option names; a `path` of None is nothing."""

    option: str
    path: Path | None
    folder: bool = False


def check_outputs(outputs: Iterable[Output]) -> None:
    """Raise ConfigError that lists every place where nothing can be written, and files that two
    options name.
    """
    problems: list[str] = []
    seen: dict[str, str] = {}
    for output in outputs:
        if output.path is None:
            continue
        if problem := unwritable(output.path, folder=output.folder):
            problems.append(
                f"expected a place that can be written for {output.option}, got {output.path}:"
                f" {problem}"
            )
        place = os.path.realpath(output.path)
        if not output.folder and place in seen:
            problems.append(
                f"expected another file for {output.option} than for {seen[place]}, got"
                f" {output.path}"
            )
        seen[place] = output.option
    if problems:
        raise ConfigError("; ".join(problems))


def unwritable(path: Path, *, folder: bool = False) -> str:
    """Why a file, or a folder's files, cannot be written here; empty where they can.

    Parents will be made.
    """
    try:
        str(path.absolute()).encode()
        target = Path(os.path.realpath(path))
        if not folder and target.is_dir():
            return "it is a folder"
        if target.exists() and not target.is_dir():
            return _unwritable_file(target, folder=folder)
        place = next(parent for parent in (target, *target.parents) if parent.exists())
        if not place.is_dir():
            return f"{place} is not a folder"
        with tempfile.TemporaryFile(dir=place):
            pass
        _check_length(target, place)
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _unwritable_file(target: Path, *, folder: bool) -> str:
    if folder:
        return "it is not a folder"
    if not target.is_file():
        return "it is no regular file"
    with target.open("ab"):  # changes nothing
        return ""


def _check_length(target: Path, place: Path) -> None:
    """Raise OSError where a part of the path that is still to be made has too long a name."""
    for part in target.relative_to(place).parts:
        (place / part).exists()
