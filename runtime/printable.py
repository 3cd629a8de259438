"""Text from elsewhere (an instruction, a source, a path, a client's words) made safe to show.

Knows characters only.

What would move a terminal's cursor, forge a line of a log or be invisible is shown escaped, as
Python writes it in a string: `\\x1b`, `\\n`, `\\u202e`. Letters of all scripts, emoji and the
joiners inside words stay.
"""

from __future__ import annotations

import unicodedata

# controls, formats, surrogates, private, unassigned, separators
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
JOINERS = {"\u200c", "\u200d"}  # part of words in Persian and Indic scripts, and of emoji


def printable(text: str, most: int | None = None) -> str:
    """The text on one line of at most `most` characters, everything escaped that is not to be seen
    as a character.
    """
    cut = text if most is None else text[: most + 1]
    shown = (
        cut if cut.isascii() and cut.isprintable() else "".join(_shown(letter) for letter in cut)
    )
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def printable_lines(text: str, indent: str = "    ") -> str:
    """Several lines, such as a traceback's; all but the first are indented: none passes for a line
    of its own.
    """
    first, *others = [printable(line) for line in text.split("\n")]
    return "\n".join([first, *(f"{indent}{line}" if line else line for line in others)])


def _shown(letter: str) -> str:
    if letter in JOINERS or unicodedata.category(letter) not in HIDDEN:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
