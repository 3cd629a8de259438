"""The ZeroMQ server that GR00T's client talks to. Knows sockets; `groot_protocol` knows the
messages.

Clients use REQ sockets; inside is a ROUTER, so that one slow client keeps nobody waiting: requests
are taken at once, one of each client, and unpacked by the service's decoders, questions wait in the
service's queue, and answers that a client does not take are dropped.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from functools import partial

import zmq

from trimvla.runtime.bus.connections import ConnectionLimits
from trimvla.runtime.bus.curve import Keys
from trimvla.runtime.bus.zap import ZapAuthenticator
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import BusyError, ConfigError, TrimvlaError
from trimvla.runtime.log_limit import LimitedLog
from trimvla.runtime.servers.groot_protocol import (
    action_reply,
    error_reply,
    modality_config,
    parse,
    reply,
)
from trimvla.runtime.servers.packing import MAX_BYTES
from trimvla.runtime.servers.service import Answer, Service

limited = LimitedLog(logging.getLogger(__name__))
HIGH_WATER = 2  # messages of one client, either way
POLL_MS = 100
A_SESSION = 4  # connections: those that ended without a word are noticed late


class GrootServer:
    """A service at a ZeroMQ address. Its socket is used by its own thread alone."""

    def __init__(
        self,
        service: Service,
        endpoint: str,
        keys: Keys | None = None,
        *,
        allow_plain: bool = False,
        token: str = "",
    ) -> None:
        """Bind. Raises ConfigError where that must not or cannot be."""
        self._service = service
        self._token = token
        self._door = ZapAuthenticator(keys, allow_plain=allow_plain)
        self._socket = self._door.context.socket(zmq.ROUTER)
        self._socket.set_hwm(HIGH_WATER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            limits = ConnectionLimits(most=A_SESSION * service.config.max_sessions)
            self.endpoint = self._door.bind(self._socket, endpoint, limits)
        except ConfigError:
            self._socket.close(0)
            self._door.close()
            raise
        self._done: deque[tuple[bytes, bytes]] = deque()
        self._active: set[bytes] = set()
        """Clients with a request under way; used by our own thread alone."""
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="groot-server", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> int:
        """Connections that were."""
        return self._door.refusals.total + self._door.cut_off

    def close(self) -> None:
        """End; what is being answered is not sent any more."""
        self._closing.set()
        self._wake()
        self._thread.join()
        self._door.close()
        self._wake_in.close()
        self._wake_out.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        try:
            while not self._closing.is_set():
                ready = dict(poller.poll(POLL_MS))
                if self._wake_out.fileno() in ready:
                    self._deliver()
                if self._socket in ready:
                    self._receive()
        finally:
            self._socket.close(0)

    def _deliver(self) -> None:
        """The answers that are there."""
        self._wake_out.recv(4096)
        while self._done:
            client, content = self._done.popleft()
            self._active.discard(client)
            self._send(client, content)

    def _receive(self) -> None:
        """One request, of whichever client's turn it is."""
        first, *rest = self._socket.recv_multipart(copy=False)
        self._door.taken(first.get(zmq.SRCFD))
        client = first.bytes
        if len(rest) != 2 or len(rest[0]):  # no REQ socket: nobody would receive an answer
            self._service.counters["malformed"] += 1
        elif client in self._active:
            error = self._service.refuse(
                BusyError("expected one question at a time, got another before the answer")
            )
            self._send(client, error_reply(error))
        else:
            self._hand_out(client, rest[1])

    def _hand_out(self, client: bytes, request: zmq.Frame) -> None:
        """Let a decoder begin with it."""
        try:
            job = self._service.decoders.submit(len(request), partial(self._begin, client, request))
        except BusyError as error:
            self._send(client, error_reply(self._service.refuse(error)))
            return
        self._active.add(client)
        job.add_done_callback(partial(self._begun, client))

    def _begin(self, client: bytes, request: zmq.Frame) -> bytes | None:
        """In a decoder's thread: the answer, or None where it will come later."""
        service = self._service
        asked = parse(
            request.bytes,
            service.config.camera,
            self._token,
            cameras=service.cameras,
        )
        if asked.endpoint == "ping":
            return reply(
                {
                    "status": "ok",
                    "message": service.metadata["server"],
                    "monotonic_ns": monotonic_ns(),
                }
            )
        if asked.endpoint == "get_modality_config":
            return reply(modality_config(service.metadata, service.config.camera))
        session = service.sessions.of(client)
        if asked.query is None:
            session.reset(asked.seed)
            return reply({"episode": session.episode})
        service.ask(session, asked.query).add_done_callback(partial(self._finish, client))
        return None

    def _begun(self, client: bytes, job: Future[bytes | None]) -> None:
        """In a decoder's thread: hand over what is known already."""
        try:
            content = job.result()
        except CancelledError:  # the service is closing
            return
        except Exception as error:  # one client's request must not end the server for all
            content = error_reply(self._service.refuse(error))
        if content is not None:
            self._hand_over(client, content)

    def _finish(self, client: bytes, future: Future[Answer]) -> None:
        """In the inference thread: hand the answer to ours."""
        try:
            content = action_reply(future.result(), self._service.metadata)
        except TrimvlaError as error:
            content = error_reply(error)
        self._hand_over(client, content)

    def _hand_over(self, client: bytes, content: bytes) -> None:
        """An answer to our own thread."""
        self._done.append((client, content))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is awake already, or closed
            self._wake_in.send(b".")

    def _send(self, client: bytes, content: bytes) -> None:
        """To a client that reads; for one that does not, ZeroMQ drops it."""
        try:
            self._socket.send_multipart([client, b"", content], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            limited.warning("dropped", "an answer was dropped: %s", error)
