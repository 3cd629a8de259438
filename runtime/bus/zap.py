"""Who may connect to our TCP sockets, and a log line for everyone who was refused.

Knows keys; not what travels.

With keys, a socket is encrypted with CURVE, and this module authenticates (ZeroMQ's protocol, ZAP)
clients whose key is on the list. A client without a key, or with one meant for another server,
fails before that; the socket's monitor reports it.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections import Counter

import zmq
from zmq.utils import z85

from trimvla.runtime.bus.connections import ConnectionLimits, Connections
from trimvla.runtime.bus.curve import Keys, check_plain
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.ports import check_endpoint

log = logging.getLogger(__name__)
ZAP = "inproc://zeromq.zap.01"
HANDSHAKE_MS = 3000  # who has not shown a key by then is cut off
POLL_MS = 100
GUARDED_POLL_MS = 20  # where peers are limited: what they can send in between is not
REPEAT_S = 60.0  # the same stranger is logged this often at most, with a count
REMEMBERED = 1024  # strangers

# Of a monitor's message. pyzmq's reader of them brings asyncio along, 30 ms of every start.
EVENT = struct.Struct("=Hi")
ACCEPTED = zmq.EVENT_ACCEPTED
GONE = zmq.EVENT_DISCONNECTED
FAILED = {
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no key, or one meant for another server",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it broke off the handshake, or uses another protocol",
}
WATCHED = (
    ACCEPTED | GONE | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class ZapAuthenticator:
    """A context for sockets that bind to TCP; its thread lets clients in or refuses them."""

    def __init__(self, keys: Keys | None, *, allow_plain: bool = False) -> None:
        """Without keys, only loopback addresses are bound, unless `allow_plain`."""
        self._keys = keys
        self._allow_plain = allow_plain
        self.context = zmq.Context()
        self.refusals = Refusals()
        self._watches: list[_Watch] = []
        self._zap = self.context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="zap", daemon=True)
        self._thread.start()

    def bind(
        self, server: zmq.Socket[bytes], endpoint: str, limits: ConnectionLimits | None = None
    ) -> str:
        """Bind a socket of this context; where it really is bound.

        Raises ConfigError if it must not or cannot be.

        With `limits`, whoever takes the socket's messages calls `taken` for each.
        """
        server.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if self._keys is None:
            check_plain(endpoint, self._allow_plain)
        else:
            server.curve_server = True
            server.curve_secretkey = self._keys.secret
            server.curve_publickey = self._keys.public
            server.zap_domain = b"trimvla"
            # with 1, libzmq 4.3.5 never receives ZAP's reply: no client is accepted
            server.rcvhwm = max(server.rcvhwm, 2)
        self._watches.append(_Watch(server, self.refusals, Connections(limits)))
        try:
            check_endpoint(endpoint, "an address", any_free=True)
            server.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot bind '{endpoint}': {error}") from None
        return server.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def taken(self, descriptor: int) -> None:
        """A message of the connection with this descriptor was received."""
        for watch in self._watches:
            watch.peers.taken(descriptor)

    @property
    def cut_off(self) -> int:
        """Connections that exceeded the limits."""
        return sum(watch.peers.cut_off for watch in self._watches)

    def close(self) -> None:
        """End the thread and the context; the sockets are closed by their owners, before."""
        self._closing.set()
        self._thread.join()
        self.context.term()

    def _keep(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        known = 0
        while not self._closing.is_set():
            for watch in self._watches[known:]:
                poller.register(watch.events, zmq.POLLIN)
            known = len(self._watches)
            guarded = any(watch.peers.limits for watch in self._watches[:known])
            ready = dict(poller.poll(GUARDED_POLL_MS if guarded else POLL_MS))
            if self._zap in ready:
                self._answer()
            for watch in self._watches[:known]:
                if watch.events in ready:
                    watch.take()
                watch.peers.enforce()
        for watch in self._watches:
            watch.peers.close()
        for sock in (self._zap, *(watch.events for watch in self._watches)):
            sock.close(0)

    def _answer(self) -> None:
        """One question of ZAP: version, request, domain, address, identity, mechanism, key."""
        version, request, _, address, _, mechanism, *credentials = self._zap.recv_multipart()
        name = self._name_of(address.decode(), mechanism, credentials)
        status = (b"200", b"OK", name.encode()) if name else (b"400", b"refused", b"")
        self._zap.send_multipart([version, request, *status, b""])

    def _name_of(self, address: str, mechanism: bytes, credentials: list[bytes]) -> str:
        """Whose key this is; empty for nobody's."""
        if self._keys is None or mechanism != b"CURVE" or len(credentials) != 1:
            self.refusals.note(address, "no key")
            return ""
        key = z85.encode(credentials[0])
        try:
            name = self._keys.allowed().get(key, "")
        except ConfigError as error:  # a broken file in the directory lets nobody in
            log.error("%s", error)
            name = ""
        if not name:
            self.refusals.note(address, f"key {key.decode()} is not in {self._keys.directory}")
        return name


class Refusals:
    """Counts and logs who was refused; one stranger who comes again and again does not fill the
    log.
    """

    def __init__(self) -> None:
        self.total = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._due_ns: dict[tuple[str, str], int] = {}

    def note(self, address: str, reason: str) -> None:
        """Somebody was refused."""
        self.total += 1
        if len(self._counts) >= REMEMBERED:
            self._counts.clear()
            self._due_ns.clear()
        who = (address.rpartition(":")[0] if ":" in address else address, reason)
        self._counts[who] += 1
        now = monotonic_ns()
        if now >= self._due_ns.get(who, 0):
            self._due_ns[who] = now + to_ns(REPEAT_S)
            log.warning("refused %s: %s (%d so far)", address, reason, self._counts[who])


class _Watch:
    """One socket's monitor: who is connecting, and whose handshake failed."""

    def __init__(self, server: zmq.Socket[bytes], refusals: Refusals, peers: Connections) -> None:
        self.events = server.get_monitor_socket(WATCHED)
        self.peers = peers
        self._refusals = refusals
        self._reason: str | None = None

    def take(self) -> None:
        """Handle all waiting events.

        A failure does not name its client; the disconnection that follows at once does.
        """
        waiting: list[tuple[zmq.Event, int]] = []
        while self.events.poll(0):
            described, _ = self.events.recv_multipart()
            number, value = EVENT.unpack(described)
            waiting.append((zmq.Event(number), value))
        gone = {value for kind, value in waiting if kind == GONE}
        for kind, value in waiting:
            # else the number may be another connection's by now
            if kind == ACCEPTED and value not in gone:
                self.peers.opened(value)
            elif kind in FAILED:
                self._reason = FAILED[kind]
            elif kind == GONE:
                self._leave(self.peers.closed(value))

    def _leave(self, address: str) -> None:
        if self._reason is not None:
            self._refusals.note(address, self._reason)
        self._reason = None
