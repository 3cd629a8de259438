"""What is wrong with the traffic that a process subscribes to, in words for its reasons and in
numbers for its report.

Knows inputs; no process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trimvla.runtime.bus.inputs import Input

MAX_REASON = 4096  # characters, as in messages
MAX_TROUBLE = 1000


def trouble(inputs: Iterable[Input]) -> str:
    """Topics whose messages were refused lately, and why; empty where none was."""
    return "; ".join(found.trouble for found in inputs if found.trouble)


def explain(reason: str, inputs: Iterable[Input]) -> str:
    """A reason not to act, with what is wrong with the traffic beside it."""
    beside = trouble(inputs)[:MAX_TROUBLE]
    return f"{reason[: MAX_REASON - MAX_TROUBLE - 2]}; {beside}" if beside else reason


def counters(inputs: Iterable[Input]) -> Iterator[tuple[str, int]]:
    """By topic, since the start: messages that were refused, and missed ones."""
    for found in inputs:
        yield f"refused.{found.topic.name}", found.refused
        yield f"missed.{found.topic.name}", found.missed


def values(inputs: Iterable[Input]) -> Iterator[tuple[str, float]]:
    """By topic: the measured rate [Hz], whether it is the expected one, and whether the last
    delivery was a message.

    Where there may be several senders, also how many are expected to go on.
    """
    for found in inputs:
        yield f"hz.{found.topic.name}", round(found.hz, 2)
        yield f"rate_ok.{found.topic.name}", float(found.rate_ok)
        yield f"valid.{found.topic.name}", float(found.valid)
        if found.topic.senders > 1:
            yield f"senders.{found.topic.name}", float(found.senders)


def problems(inputs: Iterable[Input]) -> Iterator[tuple[str, str]]:
    """By topic: why a message was last refused, of those where one was."""
    for found in inputs:
        if found.problem:
            yield found.topic.name, found.problem[:MAX_TROUBLE]
