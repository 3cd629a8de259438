"""What every verb shares: its options, its console and the shape of its answer. Knows no verb.

A verb is a module with a frozen dataclass `Args(Options)`, whose docstring is its help, and
`run(args) -> Result`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from trimvla.launch.outputs import Output
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.log_limit import EveryCallLimit
from trimvla.runtime.printable import printable, printable_lines

if TYPE_CHECKING:  # a benchmark on a machine where nothing is installed does without
    from trimvla.launch.console import Console

LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every verb."""

    json: bool = False
    """Print exactly one JSON object as the last line of stdout; everything meant for people goes to
    stderr.
    """

    log_format: LogFormat = "text"
    """How logs on stderr look: for people, or one JSON object a line."""

    def outputs(self) -> Sequence[Output]:
        """What the verb will write; the command line checks that it can before the verb begins."""
        return ()

    def console(self) -> Console:
        """Where cards and tables go: stdout for people, stderr where stdout belongs to a
        program.
        """
        from trimvla.launch.console import Console

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


class TextFormatter(logging.Formatter):
    """One line a message, whatever is in it; lines of a traceback are indented, so that none passes
    for a message.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging names it
        """See `logging.Formatter`."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - as logging names and types it
        """See `logging.Formatter`."""
        return f"    {printable_lines(super().formatException(ei))}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `monotonic_ns` is the clock of the messages between the processes."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "utc": datetime.fromtimestamp(record.created, timezone.utc).isoformat(
                timespec="milliseconds"
            ),
            "monotonic_ns": monotonic_ns(),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: int = logging.INFO, log_format: LogFormat = "text") -> None:
    """Logs go to stderr, one line each: ours from `level` up, other packages' from warnings up.

    No line of code can flood them, whatever others send us.
    """
    handler = _handler(log_format)
    handler.addFilter(EveryCallLimit())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("trimvla").setLevel(level)


def _handler(log_format: LogFormat) -> logging.Handler:
    if log_format == "text" and sys.stderr.isatty():
        from trimvla.launch.console import log_handler

        handler = log_handler()
        handler.setFormatter(TextFormatter("%(message)s"))
        return handler
    handler = logging.StreamHandler()
    text = TextFormatter("%(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    return handler
