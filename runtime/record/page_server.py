"""A page over HTTP for whoever comes: few connections at a time, none of them for long.

Knows no content.

Python's own server keeps a thread for every silent connection, for ever. Here a connection has a
time, and the one that has been there longest makes room for a new one, so that strangers cannot
keep the reader of the page out either.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from trimvla.runtime.clock import NS_PER_S, monotonic_ns

MOST_CONNECTIONS = 16
SILENT_S = 5.0  # of one read or write
LONGEST_S = 15.0  # of a connection


class _Handler(WSGIRequestHandler):
    timeout = SILENT_S

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: whoever can connect could fill a log."""


class PageServer(ThreadingMixIn, WSGIServer):
    """Serves a WSGI application in a thread, until `close`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, application: Callable[..., Any]) -> None:
        """Listen; port 0 takes any free one. Raises OSError where that cannot be."""
        self.address_family = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0][0]
        self._open: dict[socket.socket, int] = {}  # connection -> since when [ns], the oldest first
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)
        self.set_app(application)
        self._thread = threading.Thread(target=self.serve_forever, name="page", daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        """Bind without asking the network for this host's name, which `HTTPServer` does."""
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base class
        """Answer in a thread; the oldest connection ends where there are too many."""
        with self._lock:
            self._open[request] = monotonic_ns()
            crowd = list(self._open)[:-MOST_CONNECTIONS]
        for connection in crowd:
            _end(connection)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called twice a second: end what has taken too long."""
        with self._lock:
            old = [
                each
                for each, since in self._open.items()
                if monotonic_ns() - since > LONGEST_S * NS_PER_S
            ]
        for connection in old:
            _end(connection)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as in the base class
        """Forget a connection that is over."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base class
        """A connection that failed, fell silent or was ended is nobody's error."""

    def close(self) -> None:
        """End all connections and stop."""
        self.shutdown()
        self.server_close()
        with self._lock:
            left = list(self._open)
        for connection in left:
            _end(connection)
        self._thread.join()


def _end(connection: socket.socket) -> None:
    """Make its thread see the end; the thread itself closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
