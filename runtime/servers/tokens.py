"""Words that clients show to be let in: read from files that are their owner's alone, compared in
constant time.

They are never options: a command line is there for everyone on the machine to read.
"""

from __future__ import annotations

import hmac
import re
from pathlib import Path

from trimvla.runtime.bus.run_dir import read_own
from trimvla.runtime.errors import ConfigError

TOKEN = re.compile(rb"[!-~]{8,256}")  # letters, digits and signs, of ASCII
MAX_FILE = 1024  # bytes


def read_token(path: Path) -> str:
    """The one word in a file that nobody else may read.

    Raises ConfigError, which never holds the word.
    """
    word = read_own(path, "a token", MAX_FILE, alone=True).strip()
    if not TOKEN.fullmatch(word):
        raise ConfigError(
            f"{path}: expected one word of 8 to 256 printable letters of ASCII, got something else"
        )
    return word.decode("ascii")


def is_same(shown: str, expected: str) -> bool:
    """Whether a shown token is the expected one, in a time that does not depend on where they
    differ.
    """
    return hmac.compare_digest(shown.encode(errors="replace"), expected.encode(errors="replace"))
