"""Names of weights in a file against those that a policy needs: one error that names the file, what
is missing, and what the file holds instead.

Knows names; not what a family calls its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from trimvla.runtime.errors import CheckpointError

NAMES_SHOWN = 5


def check_names(
    place: Path, stored: Iterable[str], needed: Iterable[str], allowed: Iterable[str] = ()
) -> None:
    """Refuse a file that lacks a weight, or holds one that is unknown.

    Args:
        place: the file, for the error's words.
        stored: names in it.
        needed: names that must be there.
        allowed: names that may be there too.

    Raises:
        CheckpointError: names both what is missing and what is unknown: weights of another family
            are both.
    """
    found = set(stored)
    required = set(needed)
    problems = {
        "missing": required - found,
        "unexpected": found - required - set(allowed),
    }
    words = [
        f"{len(names)} {problem} weight(s): {some(names)}"
        for problem, names in problems.items()
        if names
    ]
    if words:
        raise CheckpointError(f"{place}: {'; '.join(words)}")


def missing(place: Path, name: str, stored: Collection[str]) -> CheckpointError:
    """The error for one weight without which the others cannot be judged."""
    got = f"{len(stored)} other(s): {some(stored)}" if stored else "none at all"
    return CheckpointError(f"{place}: 1 missing weight(s): '{name}'; got {got}")


def some(names: Iterable[str]) -> str:
    """The first few of them, in order."""
    ordered = sorted(names)
    shown = ", ".join(f"'{name}'" for name in ordered[:NAMES_SHOWN])
    return shown + (", ..." if len(ordered) > NAMES_SHOWN else "")
