"""Combines the messages of several emergency stops, deadman's switches and operators into one of
each. Pure.

estop     pressed if any sender is or was since the last look; silent as soon as one known
          sender is, even if others go on: the silent one may be pressed
deadman   held only if every known sender holds it and none let go since the last look
operator  every request counts once, in the order of arrival

A silent sender is expected back until the operator's `reset`: then those that are silent are
forgotten, and whoever sends again is expected again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from trimvla.runtime.bus.inputs import Input
from trimvla.runtime.bus.messages import Deadman, EStop, Operator

REMEMBERED = 256  # requests whose repetitions are recognised


def stop_button(source: Input) -> EStop | None:
    """The message that counts; None if a sender is silent, or none is known."""
    newest = [message for message in source.newest if isinstance(message, EStop)]
    since = [message for message in source.fresh if isinstance(message, EStop)]
    pressed = next((message for message in [*since, *newest] if message.pressed), None)
    if pressed is not None or source.silent:
        return pressed
    return max(newest, key=lambda message: message.time_ns, default=None)


def enabling_switch(source: Input) -> Deadman | None:
    """The message that counts; None if a sender is silent, or none is known."""
    newest = [message for message in source.newest if isinstance(message, Deadman)]
    since = [message for message in source.fresh if isinstance(message, Deadman)]
    released = next((message for message in [*since, *newest] if not message.held), None)
    if released is not None or source.silent:
        return released
    return min(newest, key=lambda message: message.time_ns, default=None)


def missing(source: Input) -> str:
    """How many senders are silent, where others go on; empty where none is, or all are."""
    silent = len(source.silent)
    return (
        f"{silent} of {source.senders} on '{source.topic.name}' silent"
        if 0 < silent < source.senders
        else ""
    )


class Words:
    """The operators' words, each once."""

    def __init__(self) -> None:
        self.last_id = 0
        """Of the last word that has one."""
        self._known: deque[int] = deque(maxlen=REMEMBERED)

    def take(self, messages: Iterable[Operator]) -> tuple[Operator, ...]:
        """Those that are no repetitions."""
        return tuple(message for message in messages if self._is_new(message))

    def _is_new(self, message: Operator) -> bool:
        if message.id == 0:
            return True
        self.last_id = message.id
        if message.id in self._known:
            return False
        self._known.append(message.id)
        return True
