"""A policy service over websockets: one conversation a connection, with limits on everything that a
client decides.

Runs asyncio in a thread of its own; messages are unpacked by the service's decoders. A browser's
pages are refused (they send an `Origin`), so is who shows another token than the server's, who
sends more than the cap, and who neither sends nor reads for too long. At the limit of connections,
a new one replaces the longest idle. `GET /healthz` answers 200. Knows connections; not messages.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from trimvla.runtime.bus.curve import is_loopback
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import ConfigError, TrimvlaError
from trimvla.runtime.log_limit import LimitedLog
from trimvla.runtime.servers.packing import MAX_BYTES
from trimvla.runtime.servers.query import Query
from trimvla.runtime.servers.service import Place, Service
from trimvla.runtime.servers.tokens import is_same
from trimvla.runtime.servers.websocket_inbox import BoundedConnection, Inbox, address_of, bounded
from trimvla.runtime.servers.websocket_protocols import Conversation

limited = LimitedLog(logging.getLogger(__name__))
SEND_S = 10.0  # a client that takes nothing for so long is cut off
HANDSHAKE_S = 5.0
HEALTH = ("/healthz", "/health")
A_SESSION = 4  # connections: most are still in their handshake, or leaving
MAX_QUERY_FIELDS = 16


@dataclass(eq=False)
class _Seat:
    """One conversation's place."""

    busy: bool = False
    """A message of it is being answered."""
    used_ns: int = field(default_factory=monotonic_ns)


class WebsocketServer:
    """A service at a port, in conversations of one kind."""

    def __init__(
        self, service: Service, place: Place, converse: Callable[[], Conversation]
    ) -> None:
        """Listen. Raises ConfigError where that must not or cannot be."""
        if not (place.allow_plain or is_loopback(place.host)):
            raise ConfigError(
                f"expected a loopback address or --insecure for a websocket, got '{place.host}'"
            )
        self._service = service
        self._place = place
        self._converse = converse
        self._started: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._inbox = Inbox(A_SESSION * service.config.max_sessions)
        self._seats: dict[ServerConnection, _Seat] = {}
        self._thread = threading.Thread(target=self._run, name="websocket-server", daemon=True)
        self._thread.start()
        try:
            self.port = self._started.result()
        except OSError as error:
            self._thread.join()
            raise ConfigError(
                f"cannot listen at {place.host}:{place.port}: {error.strerror or error}"
            ) from None

    def close(self) -> None:
        """Close every connection."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # handed over to the starting thread
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        async with serve(
            self._talk,
            self._place.host,
            self._place.port,
            process_request=self._admit,
            create_connection=bounded(self._inbox),
            origins=[None],
            compression=None,
            max_size=MAX_BYTES,
            max_queue=2,
            open_timeout=HANDSHAKE_S,
            # a simulator's client is deaf while it works; silence is limited by `idle_s`
            ping_interval=None,
            close_timeout=2.0,
            # strangers must not fill the log
            logger=logging.Logger("websockets", logging.CRITICAL),
        ) as server:
            self._started.set_result(_port(server))
            await self._ending.wait()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """An HTTP answer, or None to go on with the websocket."""
        try:
            url = urlsplit(request.path)
            authorization = request.headers.get("Authorization", "")
            shown = _token(authorization, url.query)
        except (ValueError, LookupError):  # no address, or several tokens
            return connection.respond(
                HTTPStatus.BAD_REQUEST, "expected an address and one token at most\n"
            )
        if url.path in HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._place.token and not is_same(shown, self._place.token):
            address = address_of(connection)
            limited.warning(
                address.rpartition(":")[0],
                "refused %s: another token than the server's, or none",
                address,
            )
            return connection.respond(HTTPStatus.UNAUTHORIZED, "expected the server's token\n")
        if self._full() and self._longest_idle() is None:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many clients; try again later\n"
            )
        return None

    def _full(self) -> bool:
        return len(self._seats) >= self._service.config.max_sessions

    def _longest_idle(self) -> ServerConnection | None:
        idle = [
            (seat.used_ns, connection) for connection, seat in self._seats.items() if not seat.busy
        ]
        return min(idle, key=lambda pair: pair[0])[1] if idle else None

    async def _talk(self, connection: ServerConnection) -> None:
        if self._full():
            other = self._longest_idle()
            if other is None:
                await connection.close(1013, "too many clients; try again later")
                return
            del self._seats[other]  # at once: its closing may take a while
            leaving = self._loop.create_task(other.close(1013, "idle, and others wait"))
            leaving.add_done_callback(lambda task: task.cancelled() or task.exception())
        seat = self._seats[connection] = _Seat()
        try:
            await self._converse_with(connection, seat, self._converse())
        except ConnectionClosed:
            pass
        except asyncio.TimeoutError:
            await connection.close(1001, "idle")
        except Exception as error:  # one client must not end the server for all
            limited.exception(type(error), "a conversation failed: %s", error)
            await connection.close(1011, "internal error")
        finally:
            self._seats.pop(connection, None)
            self._service.sessions.forget(connection.id)

    async def _converse_with(
        self, connection: ServerConnection, seat: _Seat, conversation: Conversation
    ) -> None:
        if (greeting := conversation.greeting()) is not None:
            await self._send(connection, greeting)
        while True:
            raw = await asyncio.wait_for(connection.recv(), self._service.config.idle_s)
            seat.busy = True
            assert isinstance(connection, BoundedConnection)
            connection.taken(raw)
            reply = await self._reply(connection, conversation, raw)
            seat.busy = False
            seat.used_ns = monotonic_ns()
            if reply is not None:
                await self._send(connection, reply)

    async def _reply(
        self, connection: ServerConnection, conversation: Conversation, raw: bytes | str
    ) -> bytes | str | None:
        service = self._service
        try:
            session = service.sessions.of(connection.id)
            job = service.decoders.submit(len(raw), partial(conversation.receive, raw, session))
            received = await asyncio.wrap_future(job)
            if not isinstance(received, Query):
                return received
            question = service.ask(session, received)
        except Exception as error:  # one client's message must not end its conversation
            return conversation.refusal(service.refuse(error))
        try:
            return conversation.answer(await asyncio.wrap_future(question))
        except TrimvlaError as error:  # counted by the service
            return conversation.refusal(error)

    @staticmethod
    async def _send(connection: ServerConnection, content: bytes | str) -> None:
        try:
            await asyncio.wait_for(connection.send(content), SEND_S)
        except asyncio.TimeoutError:
            connection.transport.abort()
            raise


def _port(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def _token(authorization: str, query: str) -> str:
    """Of `Authorization: Api-Key TOKEN` (or Bearer), else of `?token=TOKEN`. Raises ValueError."""
    kind, _, value = authorization.partition(" ")
    if kind in ("Api-Key", "Bearer"):
        return value
    return parse_qs(query, max_num_fields=MAX_QUERY_FIELDS).get("token", [""])[0]
