"""Tables of results as Markdown: cells for rates, differences and durations, and their place in a
page.

Knows text and numbers; not what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from trimvla.runtime.errors import ConfigError

Row = tuple[str, ...]


class Paired(Protocol):
    """Two policies on the same episodes: the difference of their success rates, and what it allows
    to conclude."""

    @property
    def difference(self) -> float:
        """Candidate minus reference."""
        ...

    @property
    def interval(self) -> tuple[float, float]:
        """Of that difference, 95 %."""
        ...

    @property
    def non_inferior(self) -> bool:
        """Whether the margin is kept."""
        ...

    @property
    def p_value(self) -> float:
        """McNemar's."""
        ...


def insert(text: str, name: str, table: str) -> str:
    """A page with this table between its marks. Raises ConfigError where the marks are missing."""
    begin = f"<!-- {name} -->"
    end = f"<!-- end of {name} -->"
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise ConfigError(f"expected the marks {begin} and {end} in the page, got neither or one")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def as_markdown(head: Row, rows: Sequence[Row]) -> str:
    """A table, or one instruction where it has no rows."""
    if not rows:
        return "No results yet."
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def number(value: float | None, digits: int = 2, none: str = "") -> str:
    """So many digits behind the point, or `none`."""
    return none if value is None else f"{value:.{digits}f}"


def rate(value: float, interval: tuple[float, float], episodes: int) -> str:
    """A success rate with its interval and its count."""
    low, high = interval
    return f"{value:.1%} ({low:.1%} to {high:.1%}) of {episodes}"


def points(paired: Paired | None) -> str:
    """A difference in points with its interval; a star where it is not inferior at the margin."""
    if paired is None:
        return ""
    low, high = paired.interval
    star = " *" if paired.non_inferior else ""
    return f"{100 * paired.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){star}"


def p_value(paired: Paired | None) -> str:
    """McNemar's p, two digits."""
    return "" if paired is None else f"{paired.p_value:.2g}"


def duration(ms: float, ratio: float | None, digits: int = 1) -> str:
    """Milliseconds, and how many times faster than dense on the same backend."""
    return f"{ms:.{digits}f} ms" + ("" if ratio is None else f" ({ratio:.2f}x)")
