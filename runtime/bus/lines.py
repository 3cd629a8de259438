"""Lines: one socket each, from one sender of a topic to its readers, and the queue of what came
until it is wanted.

Used by a subscriber's receiving thread. Knows sockets and bytes; a message's content only where the
queue overflows.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

import zmq

from trimvla.runtime.bus.claim import endpoint, socket_path
from trimvla.runtime.bus.inputs import RATE_WINDOW, Batch, Delivery
from trimvla.runtime.bus.network import remote_endpoint, to_local_clock
from trimvla.runtime.bus.run_dir import is_own_socket
from trimvla.runtime.bus.topics import Topic
from trimvla.runtime.bus.wire import MAX_HEADER_BYTES, decode
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import WireError

RECONNECT_NS = 200_000_000  # between two tries to reach a publisher that cuts us off
RETRY_MS = 50  # between two tries to reach a sender of a topic whose messages all count
KEPT = 64  # messages that count, by line, beside the queue
SPARE = 1  # deliveries beside the newest, in case that is no message


class Line:
    """One sender's socket, used by the receiving thread, and what it leaves for the next
    `update`.
    """

    def __init__(self, run_dir: Path, topic: Topic, sender: int = 0) -> None:
        """Connect.

        Raises ConfigError where somebody else's socket, or no socket at all, is in its place.
        """
        self.topic = topic
        self.sender = sender
        self.parts = 0  # received in this window
        self._deliveries: deque[Delivery] = deque(
            maxlen=topic.depth + (SPARE if topic.depth == 1 else 0)
        )
        self._kept: list[Delivery] = []
        self._arrivals: deque[int] = deque(maxlen=RATE_WINDOW)
        self._lost = False
        self._due_ns = 0
        self._far = remote_endpoint(run_dir, topic.name)
        if self._far is None:
            is_own_socket(socket_path(run_dir, topic, sender))
        self._address = self._far.place.endpoint if self._far else endpoint(run_dir, topic, sender)
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.set_hwm(topic.high_water)
        self.socket.setsockopt(zmq.MAXMSGSIZE, topic.max_bytes + MAX_HEADER_BYTES)
        self.socket.setsockopt(zmq.LINGER, 0)
        if topic.senders > 1:
            self.socket.setsockopt(zmq.RECONNECT_IVL, RETRY_MS)
        self.socket.subscribe(topic.name.encode())
        if self._far is not None:
            self._far.connect(self.socket)
        self.losses = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(self._address)

    def receive(self) -> list[bytes]:
        """The next message, on this host's clock."""
        parts = self.socket.recv_multipart()
        self.parts += len(parts)
        return to_local_clock(self.topic, parts) if self._far else parts

    def queue(self, received_ns: int, parts: list[bytes]) -> None:
        """Keep what came for the next `update`; where the queue is full, at the cost of its
        oldest.
        """
        if len(self._deliveries) == self._deliveries.maxlen and self._counts(self._deliveries[0]):
            self._kept.append(self._deliveries[0])
        self._deliveries.append(Delivery(received_ns, parts, self.sender))
        self._arrivals.append(received_ns)

    def _counts(self, delivery: Delivery) -> bool:
        """Whether a message must not be lost, such as a pressed emergency stop among many that are
        not.
        """
        if self.topic.counts is None or len(self._kept) >= KEPT:
            return False
        with contextlib.suppress(WireError):
            return self.topic.counts(decode(self.topic, delivery.parts))
        return False

    def empty(self) -> Batch:
        """Hand over what came."""
        batch = Batch([*self._kept, *self._deliveries], list(self._arrivals), self.sender)
        self._kept.clear()
        self._deliveries.clear()
        self._arrivals.clear()
        return batch

    def on_disconnect(self) -> None:
        """Note that the connection is gone."""
        self.losses.recv_multipart()
        self._lost = True

    def reconnect(self) -> None:
        """After a loss.

        ZeroMQ does so itself, except after a message that was too large: then it would stay deaf.
        """
        if not self._lost or monotonic_ns() < self._due_ns:
            return
        self._lost = False
        self._due_ns = monotonic_ns() + RECONNECT_NS
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disconnect(self._address)
        self.socket.connect(self._address)

    def close(self) -> None:
        """Free both sockets."""
        self.socket.disable_monitor()
        self.losses.close(0)
        self.socket.close(0)
