"""A policy service over websockets: one conversation a connection, with limits on everything that a client decides.

Runs asyncio in a thread of its own. A browser's pages are refused (they send an `Origin`), so is who shows another
token than the server's, who sends more than the cap, who neither speaks nor reads for too long, and who comes when the
house is full. `GET /healthz` answers 200. Knows connections; not what is said.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from trimvla.runtime.conversations import Conversation
from trimvla.runtime.curve import is_loopback
from trimvla.runtime.errors import ConfigError, TrimvlaError, WireError
from trimvla.runtime.packing import MAX_BYTES
from trimvla.runtime.query import Query
from trimvla.runtime.serving import Service

log = logging.getLogger(__name__)
SEND_S = 10.0  # a client that takes nothing for so long is cut off
HANDSHAKE_S = 5.0
HEALTH = ("/healthz", "/health")


@dataclass(frozen=True)
class Place:
    """Where a server listens and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    token: str = ""
    allow_plain: bool = False
    """It may be reached from other hosts, unencrypted."""


class WebsocketServer:
    """A service at a port, in conversations of one kind."""

    def __init__(self, service: Service, place: Place, converse: Callable[[], Conversation]) -> None:
        """Listen. Raises ConfigError where that must not or cannot be."""
        if not (place.allow_plain or is_loopback(place.host)):
            raise ConfigError(f"expected a loopback address or --insecure for a websocket, got '{place.host}'")
        self._service, self._place, self._converse = service, place, converse
        self._started: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._open = 0
        self._thread = threading.Thread(target=self._run, name="websocket-server", daemon=True)
        self._thread.start()
        try:
            self.port = self._started.result()
        except OSError as error:
            self._thread.join()
            raise ConfigError(f"cannot listen at {place.host}:{place.port}: {error.strerror or error}") from None

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
            origins=[None],
            compression=None,
            max_size=MAX_BYTES,
            max_queue=2,
            open_timeout=HANDSHAKE_S,
            ping_interval=None,  # a simulator's client is deaf while it works; silence is limited by `idle_s`
            close_timeout=2.0,
            logger=logging.Logger("websockets", logging.CRITICAL),  # strangers must not fill the log
        ) as server:
            self._started.set_result(_port(server))
            await self._ending.wait()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """An HTTP answer, or None to go on with the websocket."""
        url = urlsplit(request.path)
        if url.path in HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        shown = _token(request.headers.get("Authorization", ""), url.query)
        if self._place.token and not hmac.compare_digest(shown.encode(), self._place.token.encode()):
            log.warning("refused %s: another token than the server's, or none", _address(connection))
            return connection.respond(HTTPStatus.UNAUTHORIZED, "expected the server's token\n")
        if self._open >= self._service.config.max_sessions:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients; try again later\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        self._open += 1
        try:
            await self._converse_with(connection, self._converse())
        except ConnectionClosed:
            pass
        except asyncio.TimeoutError:
            await connection.close(1001, "idle")
        except Exception:  # one client must not end the server for all
            log.exception("a conversation failed")
            await connection.close(1011, "internal error")
        finally:
            self._open -= 1
            self._service.sessions.forget(connection.id)

    async def _converse_with(self, connection: ServerConnection, conversation: Conversation) -> None:
        if (greeting := conversation.greeting()) is not None:
            await self._send(connection, greeting)
        while True:
            raw = await asyncio.wait_for(connection.recv(), self._service.config.idle_s)
            reply = await self._reply(connection, conversation, raw)
            if reply is not None:
                await self._send(connection, reply)

    async def _reply(
        self, connection: ServerConnection, conversation: Conversation, raw: bytes | str
    ) -> bytes | str | None:
        service = self._service
        try:
            session = service.sessions.of(connection.id)
            heard = await asyncio.to_thread(conversation.hear, raw, session)  # pictures take milliseconds to unpack
            if not isinstance(heard, Query):
                return heard
            job = service.ask(session, heard)
        except TrimvlaError as error:
            service.counters["malformed" if isinstance(error, WireError) else "refused"] += 1
            return conversation.refusal(error)
        try:
            return conversation.answer(await asyncio.wrap_future(job))
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
    """Of `Authorization: Api-Key TOKEN` (or Bearer), else of `?token=TOKEN`."""
    kind, _, value = authorization.partition(" ")
    return value if kind in ("Api-Key", "Bearer") else parse_qs(query).get("token", [""])[0]


def _address(connection: ServerConnection) -> str:
    try:
        host, port = connection.remote_address[:2]
    except (TypeError, ValueError):
        return "an address that is gone"
    return f"{host}:{port}"
