"""Signals and the end of a parent, as one event or one interrupt.

Knows neither processes nor what stopping means.

A closed terminal (SIGHUP, such as of an ssh session that ends) stops like SIGTERM; `nohup` keeps it
away as ever.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading

TERMINAL_STREAMS = (1, 2)  # stdout and stderr


def stop_event(watch_parent: bool) -> threading.Event:
    """An event that SIGINT, SIGTERM, SIGHUP and, with `watch_parent`, the end of standard input
    set.

    For the main thread. A second Ctrl-C interrupts as usual.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if number == signal.SIGHUP:
            leave_terminal()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, *_hang_up()):
        signal.signal(number, on_signal)
    if watch_parent:
        threading.Thread(
            target=_set_at_end_of_input, args=(stop,), name="parent-watch", daemon=True
        ).start()
    return stop


def terminate_as_interrupt() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt: a parent stops its children and removes its
    files either way.
    """

    def on_hang_up(number: int, frame: object) -> None:
        leave_terminal()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for number in _hang_up():
        signal.signal(number, on_hang_up)


def leave_terminal() -> None:
    """Write to nowhere what would go to a terminal: one that is gone fails every write, in the
    middle of stopping.
    """
    for stream in TERMINAL_STREAMS:
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)


def _hang_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, unless whoever started us has it ignored."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


def _set_at_end_of_input(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()
