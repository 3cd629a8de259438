"""Websocket connections whose unread bytes and frames are counted, with a limit for each and for
all together.

The library limits one message; not what many connections hold at once, nor frames that carry
nothing. Knows bytes and frames; not messages. For the thread of one event loop.
"""

from __future__ import annotations

import logging
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame
from websockets.protocol import Event

from trimvla.runtime.bus.topics import KIB, MIB
from trimvla.runtime.log_limit import LimitedLog

limited = LimitedLog(logging.getLogger(__name__))
MAX_HELD = 96 * MIB  # bytes that all connections of a server sent and that were not taken
# of one connection since its last message: pings and fragments cost memory, and a message has few
MAX_FRAMES = 1024
FRAME_BYTES = 512  # a frame counts as at least so many
STEP = 16 * KIB  # so much is parsed before the limits are looked at again


class Inbox:
    """What all connections of one server hold."""

    def __init__(self, most_open: int, most_held: int = MAX_HELD) -> None:
        self.connections: set[BoundedConnection] = set()
        self.cut_off = 0
        self._most_open = most_open
        self._most_held = most_held

    def enforce(self) -> None:
        """Cut off who holds most until all together hold little enough."""
        while sum(each.held for each in self.connections) > self._most_held:
            self.cut(
                max(self.connections, key=lambda each: each.held),
                f"expected at most {self._most_held // MIB} MiB from all clients together, this one"
                " sent most",
            )

    def admit(self, connection: BoundedConnection) -> None:
        """Another one, before its handshake."""
        if len(self.connections) >= self._most_open:
            self.cut(connection, f"expected at most {self._most_open} connections")
        else:
            self.connections.add(connection)

    def cut(self, connection: BoundedConnection, why: str) -> None:
        """Without another word: whoever exceeds the limits need not be waited for."""
        self.connections.discard(connection)
        self.cut_off += 1
        limited.warning(why, "cut off %s: %s", address_of(connection), why)
        connection.transport.abort()


class BoundedConnection(ServerConnection):
    """One connection that counts what it holds."""

    _inbox: Inbox

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(*arguments, **options)
        self._frames = 0
        self._payload = 0
        """Bytes of whole frames that were not taken."""
        self._partial = 0
        """Bytes since the last whole frame."""

    @property
    def held(self) -> int:
        """Bytes in memory for this connection, about: both ways."""
        return self._payload + self._partial + self.transport.get_write_buffer_size()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._inbox.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._inbox.connections.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`; in steps, for a step of tiny frames is work for many
        milliseconds.
        """
        for start in range(0, len(data), STEP):
            if self.transport.is_closing():
                return
            part = data[start : start + STEP]
            self._partial += len(part)
            super().data_received(part)
            if self._frames > MAX_FRAMES:
                self._inbox.cut(self, f"expected at most {MAX_FRAMES} frames a message")
        self._inbox.enforce()

    def process_event(self, event: Event) -> None:
        """Count a frame; see the library."""
        self._partial = 0
        if isinstance(event, Frame):
            self._frames += 1
            self._payload += len(event.data) + FRAME_BYTES
        super().process_event(event)

    def taken(self, message: bytes | str) -> None:
        """This message was received: what it held is the receiver's now."""
        size = len(message) if isinstance(message, bytes) else len(message.encode())
        self._payload = max(0, self._payload - size - self._frames * FRAME_BYTES)
        self._frames = 0


def bounded(inbox: Inbox) -> type[BoundedConnection]:
    """The class of one server's connections, for `websockets.asyncio.server.serve`."""

    class Connection(BoundedConnection):
        _inbox = inbox

    return Connection


def address_of(connection: ServerConnection) -> str:
    """Host and port of the other end."""
    try:
        host, port = connection.remote_address[:2]
    except (TypeError, ValueError):
        return "an address that is gone"
    return f"{host}:{port}"
