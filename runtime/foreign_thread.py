"""Threads in other people's code that may never return: a driver's read, a network's run.

Knows how a process ends.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


class ForeignThread(threading.Thread):
    """A thread whose code may hang for ever; nobody waits for it."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


def end_process(status: int) -> NoReturn:
    """Exit; past threads that still hang in foreign code, whose libraries would abort if they were
    torn down below.
    """
    if any(isinstance(thread, ForeignThread) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
