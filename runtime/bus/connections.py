"""Who is connected to a ZeroMQ socket over TCP and what each has sent that nobody took; who exceeds
is cut off.

ZeroMQ itself limits one message and the number of whole messages, not their parts, not the
connections and not the sum. The kernel counts what every connection received (TCP_INFO); a
duplicate of its descriptor ends it. Knows descriptors and bytes; not messages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from dataclasses import dataclass, field

from trimvla.runtime.bus.topics import KIB, MIB
from trimvla.runtime.clock import monotonic_ns, to_ns
from trimvla.runtime.log_limit import LimitedLog

limited = LimitedLog(logging.getLogger(__name__))
UNKNOWN = "an address that left before it could be read"
BYTES_RECEIVED = 128  # offset of tcpi_bytes_received, uint64, in Linux's struct tcp_info
# of SO_LINGER: what is unsent or unread is dropped, the peer sees a reset
AT_ONCE = struct.pack("ii", 1, 0)
SMALL = 4 * KIB  # a handshake's bytes count as nothing


@dataclass(frozen=True)
class ConnectionLimits:
    """What the peers of one socket may hold."""

    most: int = 256
    """Connections; beyond, the longest idle is cut off, first those that never sent a message."""
    each_bytes: int = 33 * MIB
    """Of a message that is not complete, or not taken."""
    all_bytes: int = 96 * MIB
    """Of all of them together."""
    message_s: float = 20.0
    """A message that is not complete after so long is not waited for."""


@dataclass(eq=False)
class Connection:
    """One peer."""

    copy: socket.socket | None
    """Of its descriptor, so that it can be asked and ended without a race for the number."""
    address: str
    active_ns: int = field(default_factory=monotonic_ns)
    """When it connected, or a message of it was taken."""
    proven: bool = False
    """It sent a message."""
    taken_bytes: int = 0
    """What it had sent when its last message was taken."""
    waiting_since_ns: int | None = None
    ended: bool = False

    def pending(self) -> int:
        """Bytes since its last message."""
        return max(0, self.received() - self.taken_bytes)

    def received(self) -> int:
        """All bytes that it ever sent; 0 where the kernel does not report them."""
        with contextlib.suppress(OSError, struct.error):
            if self.copy is not None:
                info = self.copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED + 8)
                return struct.unpack_from("=Q", info, BYTES_RECEIVED)[0]
        return 0


class Connections:
    """All peers of a socket. For two threads: one that receives, and one that watches."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self.limits = limits
        self.cut_off = 0
        self._table: dict[int, Connection] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._table)

    def opened(self, descriptor: int) -> None:
        """A peer connected."""
        with self._lock:
            self._forget(descriptor)
            self._table[descriptor] = _connection(descriptor)

    def closed(self, descriptor: int) -> str:
        """A peer is gone; its address."""
        with self._lock:
            return self._forget(descriptor)

    def taken(self, descriptor: int) -> None:
        """A message of this peer was received."""
        with self._lock:
            peer = self._table.get(descriptor)
            if peer is not None:
                peer.active_ns = monotonic_ns()
                peer.proven = True
                peer.taken_bytes = peer.received()
                peer.waiting_since_ns = None

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            for descriptor in list(self._table):
                self._forget(descriptor)

    def enforce(self) -> None:
        """Cut off whoever exceeds the limits."""
        if self.limits is None:
            return
        with self._lock:
            peers = [peer for peer in self._table.values() if not peer.ended]
            for peer, why in excess(peers, self.limits, monotonic_ns()):
                self._end(peer, why)

    def _end(self, peer: Connection, why: str) -> None:
        peer.ended = True
        self.cut_off += 1
        limited.warning((peer.address.rpartition(":")[0], why), "cut off %s: %s", peer.address, why)
        with contextlib.suppress(OSError):
            if peer.copy is not None:
                peer.copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                peer.copy.shutdown(socket.SHUT_RDWR)

    def _forget(self, descriptor: int) -> str:
        peer = self._table.pop(descriptor, None)
        if peer is None:
            return UNKNOWN
        if peer.copy is not None:
            peer.copy.close()
        return peer.address


def excess(
    peers: list[Connection], limits: ConnectionLimits, now_ns: int
) -> list[tuple[Connection, str]]:
    """Who is to be cut off, and why."""
    found: dict[Connection, str] = {}
    pending = {peer: peer.pending() for peer in peers}
    for peer, size in pending.items():
        if size <= SMALL:
            peer.waiting_since_ns = None
        elif peer.waiting_since_ns is None:
            peer.waiting_since_ns = now_ns
        if size > limits.each_bytes:
            found[peer] = f"expected messages of at most {limits.each_bytes // MIB} MiB"
        elif peer.waiting_since_ns is not None and now_ns - peer.waiting_since_ns > to_ns(
            limits.message_s
        ):
            found[peer] = f"expected a whole message within {limits.message_s:g} s"
    left = [peer for peer in peers if peer not in found]
    total = sum(pending[peer] for peer in left)
    for peer in sorted(left, key=lambda peer: -pending[peer]):
        if total <= limits.all_bytes:
            break
        total -= pending[peer]
        found[peer] = (
            f"expected at most {limits.all_bytes // MIB} MiB from all clients together, this one"
            " sent most"
        )
    left = [peer for peer in left if peer not in found]
    idlest = sorted(left, key=lambda peer: (peer.proven, peer.active_ns))
    for peer in idlest[: max(0, len(left) - limits.most)]:
        found[peer] = f"expected at most {limits.most} connections, this one was idle longest"
    return list(found.items())


def _connection(descriptor: int) -> Connection:
    try:
        copy = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return Connection(None, UNKNOWN)
    try:
        host, port = copy.getpeername()[:2]
    except (OSError, ValueError):
        return Connection(copy, UNKNOWN)
    return Connection(copy, f"{host}:{port}")
