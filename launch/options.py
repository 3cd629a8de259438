"""What every verb shares: its options, its console and the shape of its answer. Knows no verb.

A verb is a module with a frozen dataclass `Args(Options)`, whose docstring is its help, and `run(args) -> Result`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

Result = dict[str, Any]
"""One JSON-able object; a verb that measured a failure says so with `"ok": False`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every verb."""

    json: bool = False
    """Print exactly one JSON object as the last line of stdout; everything meant for people goes to stderr."""

    def console(self) -> Console:
        """Where cards and tables go: stdout for people, stderr where stdout belongs to a program."""
        return Console(stderr=self.json)


def collect_overrides(argv: Sequence[str]) -> list[str]:
    """`--section.key value` becomes `--set section.key=value`; all else stays."""
    collected: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or "." not in name:
            collected.append(word)
            continue
        collected += ["--set", f"{name[2:]}={value if equals else next(words, '')}"]
    return collected


def configure_logging(level: int = logging.INFO) -> None:
    """Logs go to stderr, one line each: ours from `level` up, other packages' from warnings up."""
    handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
    if not sys.stderr.isatty():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("trimvla").setLevel(level)
