"""Threads that unpack what clients send, so that whoever sends much keeps no other client's answer
waiting.

A few threads work in the order of arrival; what waits is bounded in bytes. Knows callables and
sizes; no protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from trimvla.runtime.bus.topics import MIB
from trimvla.runtime.errors import BusyError

T = TypeVar("T")
THREADS = 2
MAX_WAITING_BYTES = 64 * MIB  # of all messages that wait or are being unpacked
SMALL_BYTES = 2 * MIB  # such messages have as much again: who sends large ones shuts nobody out


class Decoders:
    """A bounded pool of threads. For several threads."""

    def __init__(self, threads: int = THREADS, most_bytes: int = MAX_WAITING_BYTES) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._most = most_bytes
        self._lock = threading.Lock()
        self._held = 0

    def submit(self, size: int, use: Callable[[], T]) -> Future[T]:
        """Call `use`, which holds a message of `size` bytes.

        Raises BusyError where too many bytes wait.
        """
        most = self._most if size > SMALL_BYTES else 2 * self._most
        with self._lock:
            if self._held and self._held + size > most:
                raise BusyError(
                    f"expected at most {most} bytes of waiting messages; try again later"
                )
            self._held += size
        try:
            job = self._pool.submit(use)
        except RuntimeError:
            self._release(size)
            raise BusyError("the server is closing") from None
        job.add_done_callback(lambda _: self._release(size))
        return job

    def close(self) -> None:
        """End the threads; what waits is not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _release(self, size: int) -> None:
        with self._lock:
            self._held -= size
