"""The one way to a terminal: cards, live lines, bars and logs that show text from elsewhere as it
is.

An instruction with `[INST]`, a folder named `[old]`, `uint8[h, w, 3]`: nothing in a string is
markup, an emoji's name or a number to be coloured, and control characters are shown escaped
(`printable`). What is styled is a `rich.text.Text` that `styled` makes. The linter forbids rich's
own consoles, bars and handlers everywhere else.
"""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console as RichConsole  # noqa: TID251 - this is the one place
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler  # noqa: TID251
from rich.progress import (  # noqa: TID251
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.status import Status  # noqa: TID251
from rich.text import Text

from trimvla.runtime.printable import printable

__all__ = [
    "Console",
    "Progress",
    "Status",
    "log_handler",
    "progress_bar",
    "styled",
    "text_column",
    "transfer_bar",
]


class Console(RichConsole):
    """A console for which every string is plain text: printed, in a cell, a title or a live
    line.
    """

    def __init__(
        self, *, stderr: bool = False, file: IO[str] | None = None, width: int | None = None
    ) -> None:
        super().__init__(
            stderr=stderr, file=file, width=width, markup=False, highlight=False, emoji=False
        )

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - as rich types it
        """A string as text, never parsed, whatever the caller passes; see
        `rich.console.Console`.
        """
        known = {
            name: options[name]
            for name in ("style", "justify", "overflow")
            if options.get(name) is not None
        }
        return Text(printable(text), **known)

    def status(self, status: Any, **_: Any) -> Status:  # noqa: ANN401 - as rich types it
        """A live line with a spinner; `update` it with plain strings."""
        return _LiveLine(status, console=self)


class _LiveLine(Status):
    """rich's own parses each string that it is given."""

    def __init__(self, status: str | Text, *, console: RichConsole) -> None:
        super().__init__(_text(status), console=console)

    def update(self, status: Any = None, **options: Any) -> None:  # noqa: ANN401 - as rich names it
        """Show another text."""
        super().update(None if status is None else _text(status), **options)


class _PlainColumn(TextColumn):
    """A column of a progress bar whose fields may be anything."""

    def render(self, task: Task) -> Text:
        """See `rich.progress.TextColumn`."""
        return Text(printable(self.text_format.format(task=task)), justify=self.justify)


def _text(value: str | Text) -> Text:
    return Text(printable(value)) if isinstance(value, str) else value


def styled(text: str, style: str, rest: str = "") -> Text:
    """A word in a style and the rest without: `styled("no", "red", reason)`."""
    return Text.assemble((printable(text), style), printable(f" {rest}" if rest else ""))


def text_column(template: str) -> ProgressColumn:
    """A column that shows this template of `task`, such as `{task.fields[note]}`."""
    return _PlainColumn(template)


def progress_bar(*more: ProgressColumn, counts: bool = False, transient: bool = True) -> Progress:
    """Bars on stderr, so that stdout stays clean: what is done, how much of it, `more`, and the
    time that is left.
    """
    done = MofNCompleteColumn() if counts else TaskProgressColumn()
    columns = (text_column("{task.description}"), BarColumn(), done, *more, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=transient)


def transfer_bar() -> Progress:
    """Bars of bytes."""
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def log_handler() -> RichHandler:
    """Logs for a terminal; the formatter has made messages printable."""
    return RichHandler(
        console=Console(stderr=True),
        show_path=False,
        log_time_format="%H:%M:%S",
        markup=False,
        highlighter=NullHighlighter(),
    )
