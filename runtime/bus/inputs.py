"""What a subscriber knows of its topics: the newest message, how fresh it is, and what was wrong
with the traffic.

A topic with several senders is judged sender by sender: one that falls silent is not hidden by
another that goes on. Pure: knows messages, times and counts; no socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trimvla.runtime.bus.messages import Frame, Message
from trimvla.runtime.bus.topics import Topic
from trimvla.runtime.bus.wire import decode
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.errors import WireError

RATE_WINDOW = 10  # arrivals that a measured rate is made of
RATE_OK = 0.8  # of the expected rate
LOOKED_BACK = 20  # deliveries that `trouble` looks back on
TROUBLE_NS = 5 * NS_PER_S  # after which a refusal is history


class Delivery(NamedTuple):
    """What came, as bytes."""

    received_ns: int
    parts: list[bytes]
    sender: int = 0
    """Which of a topic's senders it came from."""


@dataclass(frozen=True)
class Batch:
    """What came from one sender since the last update."""

    deliveries: Sequence[Delivery]
    arrivals: Sequence[int]
    """Times of the last ones [ns], also of those whose content newer ones displaced."""
    sender: int = 0


class Sender:
    """One of a topic's senders, from its first message on."""

    def __init__(self) -> None:
        self.message: Message | Frame | None = None
        """The newest."""
        self.as_of_ns = 0
        """When that was true, at the latest: its arrival, or its own earlier time where it
        waited on its way.
        """
        self.arrivals: deque[int] = deque(maxlen=RATE_WINDOW)

    def take(self, message: Message | Frame, received_ns: int) -> int:
        """Note its newest message; how many were missed since the one before."""
        missed = 0 if self.message is None else max(0, message.sequence - self.message.sequence - 1)
        self.message = message
        self.as_of_ns = min(received_ns, message.time_ns)
        return missed

    def hz(self, now: int) -> float:
        """Measured over its last arrivals, falling as silence lasts."""
        span = now - self.arrivals[0] if self.arrivals else 0
        return (len(self.arrivals) - 1) * NS_PER_S / span if span > 0 else 0.0

    def silence_s(self, now: int) -> float:
        """Age of its newest message [s]."""
        return (now - self.as_of_ns) / NS_PER_S


class Input:
    """What a subscriber knows of one topic as of its last `update`."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.message: Message | Frame | None = None
        """The newest, whoever sent it."""
        self.fresh: list[Message | Frame] = []
        """All that came since the `update` before, oldest first; with `depth` 1 the newest
        alone.
        """
        self.valid = False
        """Whether the newest delivery was a message."""
        self.problem = ""
        """Why the last refused delivery was refused."""
        self.received_ns = 0
        self.as_of_ns = 0
        """When the newest message was true, at the latest; see `Sender`."""
        self.received = self.refused = self.missed = 0
        """Counts: messages, deliveries that were none, and gaps in the sequence numbers (displaced
        ones included).
        """
        self._senders: dict[int, Sender] = {}
        self._refusals: deque[bool] = deque(maxlen=LOOKED_BACK)
        self._refused_ns = 0
        self._now = 0

    @property
    def updated(self) -> bool:
        """Whether the last `update` brought something."""
        return bool(self.fresh)

    @property
    def silence_s(self) -> float:
        """Age of the newest message [s], which may have waited on its way; infinite before the
        first.
        """
        return (self._now - self.as_of_ns) / NS_PER_S if self.message is not None else float("inf")

    @property
    def alive(self) -> bool:
        """Whether any sender sent a message within the topic's age."""
        return self.silence_s <= self.topic.max_age_s

    @property
    def silent(self) -> tuple[int, ...]:
        """Senders that have sent a message, and none within the topic's age; see
        `forget_silent`.
        """
        return tuple(number for number, sender in self._senders.items() if self._is_silent(sender))

    @property
    def newest(self) -> list[Message | Frame]:
        """The newest message of every sender that is not silent."""
        found = [sender.message for sender in self._senders.values() if not self._is_silent(sender)]
        return [message for message in found if message is not None]

    @property
    def senders(self) -> int:
        """How many have sent a message, without those that were forgotten."""
        # the others sent none yet
        return sum(sender.message is not None for sender in self._senders.values())

    @property
    def hz(self) -> float:
        """Measured rate of the slowest sender."""
        return min((sender.hz(self._now) for sender in self._senders.values()), default=0.0)

    @property
    def rate_ok(self) -> bool:
        """Whether messages come about as often as the topic promises, from every sender."""
        return self.hz >= RATE_OK * self.topic.hz

    @property
    def trouble(self) -> str:
        """How many of the last deliveries were refused, and why; empty where none was lately."""
        count = sum(self._refusals)
        if not count or self._now - self._refused_ns > TROUBLE_NS:
            return ""
        return (
            f"{count} of the last {len(self._refusals)} messages on '{self.topic.name}' were"
            f" refused: {self.problem}"
        )

    def forget_silent(self) -> None:
        """No longer expect anything of the senders that are silent now; one that sends again is
        expected again.
        """
        for number in self.silent:
            del self._senders[number]

    def take(self, batches: Iterable[Batch], now: int) -> None:
        """Decode what came until `now`."""
        self._now = now
        self.fresh = []
        found: list[tuple[int, Message | Frame]] = []
        for batch in batches:
            if batch.arrivals:
                self._senders.setdefault(batch.sender, Sender()).arrivals.extend(batch.arrivals)
            found += self._decode(batch)
        for received_ns, message in sorted(found, key=lambda item: item[0]):
            self.message = message
            self.received_ns = received_ns
            self.as_of_ns = min(received_ns, message.time_ns)
            self.fresh.append(message)

    def _decode(self, batch: Batch) -> list[tuple[int, Message | Frame]]:
        """Messages with their arrival, oldest first.

        With `depth` 1, older ones only count if the newest is none.
        """
        found: list[tuple[int, Message | Frame]] = []
        newest_wins = self.topic.depth == 1
        for delivery in reversed(batch.deliveries) if newest_wins else batch.deliveries:
            message = self._decode_one(delivery)
            if delivery is batch.deliveries[-1]:
                self.valid = message is not None
            if message is not None:
                self.missed += self._senders[batch.sender].take(message, delivery.received_ns)
                found.append((delivery.received_ns, message))
                if newest_wins:
                    break
        return found

    def _decode_one(self, delivery: Delivery) -> Message | Frame | None:
        try:
            message = decode(self.topic, delivery.parts)
        except WireError as error:
            self.problem = str(error)
            self.refused += 1
            self._refused_ns = delivery.received_ns
            self._refusals.append(True)
            return None
        self.received += 1
        self._refusals.append(False)
        return message

    def _is_silent(self, sender: Sender) -> bool:
        return sender.message is not None and sender.silence_s(self._now) > self.topic.max_age_s
