"""The same work in several processes: items in, results as they come.

Knows processes; knows no episode and no policy.

Items are dealt out like cards, so what a process gets does not depend on how fast the others are.
Every process is fresh (`spawn`): OpenGL and ONNX Runtime do not survive a fork.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

from trimvla.runtime.errors import TrimvlaError

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Sequence[Item]], Iterable[Result]]
"""Some items -> one result each, one by one; whatever it opens, it opens once for all of them."""
Message = Literal["result", "end", "error"]
"""What a process reports: one result, that its work is done, or what went wrong instead."""


class WorkerError(TrimvlaError):
    """A process of a group failed or ended early."""


def spread(
    work: Work[Item, Result], items: Sequence[Item], workers: int
) -> Generator[Result, None, None]:
    """Do the work in `workers` processes; yields results in the order in which they are ready.

    Args:
        work: can be pickled: a function of a module, or a `functools.partial` of one.
        items: what is to be done.
        workers: at least 1; more than there are items are not started.

    Raises:
        TrimvlaError: what `work` raised, as it was.
        WorkerError: `work` failed with anything else, or its process ended.
    """
    hands = [items[i::workers] for i in range(min(workers, len(items)))]
    processes: dict[Connection, BaseProcess] = {}
    try:
        with _interrupts_ignored():
            for hand in hands:
                receiver, process = _start(work, hand)
                processes[receiver] = process
        yield from _collect(processes)
    finally:
        for process in processes.values():
            process.terminate()
        for receiver, process in processes.items():
            process.join()
            receiver.close()


def _start(work: Work[Item, Result], hand: Sequence[Item]) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(work, hand, sender), daemon=True)
    process.start()
    sender.close()  # the child's copy is now the only one: the pipe ends when the child does
    return receiver, process


def _collect(processes: dict[Connection, BaseProcess]) -> Iterator[Any]:
    """All results; a process that has reported its end may take its time to go."""
    waiting = set(processes)
    while waiting:
        for receiver in wait(list(waiting)):
            assert isinstance(receiver, Connection)
            kind, value = _receive(receiver, processes[receiver])
            if kind == "error":
                raise value
            if kind == "end":
                waiting.remove(receiver)
            else:
                yield value


def _receive(receiver: Connection, process: BaseProcess) -> tuple[Message, Any]:
    try:
        return receiver.recv()
    except (EOFError, OSError):  # at a message's border, or within one
        process.join()
        raise WorkerError(
            f"a worker ended before its work was done, with status {process.exitcode}"
        ) from None


def _serve(work: Work[Item, Result], hand: Sequence[Item], sender: Connection) -> None:
    """In the child: send each result, then the end, or the error that came instead."""
    with suppress(BrokenPipeError), sender:  # nobody listens any more: the parent is gone
        for message in _messages(work, hand):
            sender.send(message)


def _messages(work: Work[Item, Result], hand: Sequence[Item]) -> Iterator[tuple[Message, Any]]:
    try:
        for result in work(hand):
            yield "result", result
        yield "end", None
    except TrimvlaError as error:
        yield "error", error
    except Exception:
        yield "error", WorkerError(traceback.format_exc().strip())


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here never see Ctrl-C: it reaches the whole group, and stopping them is the
    parent's part.
    """
    # only the main thread may, and it alone receives it
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
