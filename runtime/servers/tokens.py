"""Words that clients show to be let in: read from files that are their owner's alone, compared in constant time.

They are never options: a command line is there for everyone on the machine to read.
"""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path

from trimvla.runtime.bus.run_dir import open_file
from trimvla.runtime.errors import ConfigError

TOKEN = re.compile(rb"[!-~]{8,256}")  # letters, digits and signs, of ASCII
MAX_FILE = 1024  # bytes


def read_token(path: Path) -> str:
    """The one word in a file that nobody else may read. Raises ConfigError, which never holds the word."""
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as source:
            mode = os.fstat(source.fileno()).st_mode & 0o777
            text = source.read(MAX_FILE)
    except OSError as error:
        raise ConfigError(f"{path}: expected a file with a token, got: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: expected a file for its owner alone (0600), got {mode:04o}")
    word = text.strip()
    if not TOKEN.fullmatch(word):
        raise ConfigError(f"{path}: expected one word of 8 to 256 printable letters of ASCII, got something else")
    return word.decode("ascii")


def is_same(shown: str, expected: str) -> bool:
    """Whether a shown token is the expected one; how long this takes tells nothing of where they differ."""
    return hmac.compare_digest(shown.encode(errors="replace"), expected.encode(errors="replace"))
