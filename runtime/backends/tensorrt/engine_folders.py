"""Where engines lie: the one place that decides, for those that build them and all that run them.

A folder that somebody names, on a command line or in a system's file, is the only one that is
looked in. Otherwise the machine's, where `launch/jetson/install.sh` builds for every user and
service, and then the user's own. Knows folders; no engine.
"""

from __future__ import annotations

import os
from pathlib import Path

from trimvla.runtime.errors import ConfigError

SYSTEM = Path("/var/lib/trimvla/engines")
CACHE = Path("~/.cache/trimvla/engines")


def named(folder: str) -> Path:
    """A folder that somebody names, with `~` replaced.

    Raises ConfigError where that user has no home.
    """
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"expected a folder for 'engines', got {folder!r}: {error}") from None


def to_look_in(named: Path | None, content: str) -> tuple[Path, ...]:
    """Folders that may hold engines of the graphs with this `engines.content_digest`, in order."""
    if named is not None:
        return (named,)
    own = _own(content)
    return (*([SYSTEM] if SYSTEM.is_dir() else []), *([own] if own is not None else []))


def to_build_in(named: Path | None, content: str) -> Path:
    """The folder that new engines go to. Raises ConfigError for a user without one."""
    if named is not None:
        return named
    if SYSTEM.is_dir() and os.access(SYSTEM, os.W_OK):
        return SYSTEM
    own = _own(content)
    if own is None:
        raise ConfigError(
            "expected a folder for the engines, this user has no home directory: name one with"
            " --out"
        )
    return own


def _own(content: str) -> Path | None:
    """The user's; None for a user without a home."""
    try:
        return CACHE.expanduser() / content
    except RuntimeError:
        return None
