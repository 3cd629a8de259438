"""Publish and subscribe over ZeroMQ: newest wins, and every input says how fresh it is.

Each topic has its own `ipc` socket in the run directory, which belongs to one user; or, where `network` says so, a TCP
address, with keys. Publishers bind and subscribers
connect, in any order. A publisher never waits: what a reader cannot take is dropped. A subscriber receives in a thread
of its own, so that arrival times are true and nothing old waits in a socket while its owner is busy. Topics whose
messages all count (`depth` above 1) keep a queue. There is no replay for late joiners: what must reach them is
repeated by its sender. A topic that floods is taken in small parts. Knows topics and freshness; not what messages mean.
"""

from __future__ import annotations

import contextlib
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.doorkeeper import Doorkeeper
from trimvla.runtime.errors import ConfigError, WireError
from trimvla.runtime.messages import Frame, Message
from trimvla.runtime.network import Far, far_end, localise, stamp
from trimvla.runtime.topics import Topic
from trimvla.runtime.wire import MAX_HEADER_BYTES, Codec, decode, encode

SOCKET_MODE = 0o700  # whatever the directory's mode and the umask are
MAX_IPC_PATH = 107  # bytes, by the operating system
LINGER_MS = 200  # what a closing publisher may take to hand over its last messages
POLL_MS = 50  # how long a closing subscriber may take to notice
RECONNECT_NS = 200_000_000  # between two tries to reach a publisher that cuts us off
WINDOW_NS = 50_000_000  # in which a topic may bring so much and no more, that a flood leaves its reader the processor:
MOST_PARTS = 300  # parts of messages: far above 1 kHz
RATE_WINDOW = 10  # arrivals that a measured rate is made of
RATE_OK = 0.8  # of the expected rate

Delivery = tuple[int, list[bytes]]
"""Arrival time [ns] and parts."""


def endpoint(run_dir: Path, topic: Topic) -> str:
    """Where a topic is bound. Raises ConfigError if the run directory's path is too long for a socket."""
    path = str(run_dir / _file_name(topic))
    if len(path.encode()) > MAX_IPC_PATH:
        raise ConfigError(f"expected at most {MAX_IPC_PATH} bytes for the socket's path, got {len(path)}: {path}")
    return f"ipc://{path}"


def _check_owner(run_dir: Path) -> None:
    """Who can write to the directory can put a socket of theirs in the place of ours."""
    if run_dir.is_dir() and run_dir.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"expected a directory that its owner alone may write to, got {run_dir}; chmod 700 it")


def _file_name(topic: Topic) -> str:
    return topic.name.replace("/", "-")


class Publisher:
    """The one sender of a topic. For one thread."""

    def __init__(self, run_dir: Path, topic: Topic, codec: Codec = "raw_rgb8") -> None:
        """Bind. `codec` is for frames. Raises ConfigError where the run directory cannot hold a socket."""
        self.topic = topic
        self._codec: Codec = codec
        self.sent = 0
        self._path = run_dir / _file_name(topic)
        far = far_end(run_dir, topic.name)
        self._door = Doorkeeper(far.keys, allow_plain=far.allow_plain) if far else None
        self._stamped = far is not None and topic.type is not Frame
        self._socket = (self._door.context if self._door else zmq.Context.instance()).socket(zmq.PUB)
        self._socket.set_hwm(topic.high_water)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            self._bind(run_dir, far)
        except (zmq.ZMQError, ConfigError) as error:
            self._socket.close(0)
            self._close_door()
            raise ConfigError(f"topic '{topic.name}': cannot bind: {error}") from None

    def _bind(self, run_dir: Path, far: Far | None) -> None:
        if far is None or self._door is None:
            _check_owner(run_dir)
            self._socket.bind(endpoint(run_dir, self.topic))
            self._path.chmod(SOCKET_MODE)
        else:
            far.check()
            self._door.bind(self._socket, far.place.endpoint)

    def send(self, message: Message | Frame) -> None:
        """Send with the next sequence number. Never waits. Raises WireError for a message that is not the topic's."""
        parts = encode(self.topic, _numbered(message, self.sent), self._codec)
        if self._stamped:
            parts.append(stamp())
        self._socket.send_multipart(parts, zmq.DONTWAIT)
        self.sent += 1

    def close(self) -> None:
        """Hand over what is on its way; no new reader finds the topic."""
        self._socket.close()
        self._close_door()
        self._path.unlink(missing_ok=True)

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _numbered(message: Message | Frame, sequence: int) -> Message | Frame:
    if isinstance(message, Frame):
        return replace(message, sequence=sequence)
    return msgspec.structs.replace(message, sequence=sequence)


class Input:
    """What a subscriber knows of one topic as of its last `update`."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.message: Message | Frame | None = None
        """The newest."""
        self.fresh: list[Message | Frame] = []
        """All that came since the `update` before, oldest first; with `depth` 1 the newest alone."""
        self.valid = False
        """Whether the newest delivery was a message."""
        self.problem = ""
        """Why the last refused delivery was refused."""
        self.received_ns = 0
        self.received = self.refused = self.missed = 0
        """Counts: messages, deliveries that were none, and gaps in the sequence numbers (superseded ones included)."""
        self._arrivals: deque[int] = deque(maxlen=RATE_WINDOW)
        self._now = 0

    @property
    def updated(self) -> bool:
        """Whether the last `update` brought something."""
        return bool(self.fresh)

    @property
    def silence_s(self) -> float:
        """Time since the newest message came [s]; infinite before the first."""
        return (self._now - self.received_ns) / NS_PER_S if self.message is not None else float("inf")

    @property
    def alive(self) -> bool:
        """Whether the sender was heard of within the topic's age."""
        return self.silence_s <= self.topic.max_age_s

    @property
    def hz(self) -> float:
        """Measured over the last arrivals, falling as silence lasts."""
        span = self._now - self._arrivals[0] if self._arrivals else 0
        return (len(self._arrivals) - 1) * NS_PER_S / span if span > 0 else 0.0

    @property
    def rate_ok(self) -> bool:
        """Whether messages come about as often as the topic promises."""
        return self.hz >= RATE_OK * self.topic.hz

    def take(self, deliveries: Iterable[Delivery], arrivals: Iterable[int], now: int) -> None:
        """Decode what came; the thread's part of the counts comes with it."""
        self._now = now
        self._arrivals.extend(arrivals)
        self.fresh = []
        for received_ns, parts in deliveries:
            self._take_one(received_ns, parts)

    def _take_one(self, received_ns: int, parts: list[bytes]) -> None:
        try:
            message = decode(self.topic, parts)
        except WireError as error:
            self.valid, self.problem = False, str(error)
            self.refused += 1
            return
        if self.message is not None:
            self.missed += max(0, message.sequence - self.message.sequence - 1)
        self.message, self.received_ns, self.valid = message, received_ns, True
        self.received += 1
        self.fresh.append(message)


class _Line:
    """One topic's socket, used by the receiving thread, and what it leaves for the next `update`."""

    def __init__(self, run_dir: Path, topic: Topic) -> None:
        self.deliveries: deque[Delivery] = deque(maxlen=topic.depth)
        self.arrivals: deque[int] = deque(maxlen=RATE_WINDOW)
        self.topic = topic
        self._far = far_end(run_dir, topic.name)
        self._address = self._far.place.endpoint if self._far else endpoint(run_dir, topic)
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.set_hwm(topic.high_water)
        self.socket.setsockopt(zmq.MAXMSGSIZE, topic.max_bytes + MAX_HEADER_BYTES)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.subscribe(topic.name.encode())
        if self._far is not None:
            self._far.connect(self.socket)
        self._lost, self._due_ns = False, 0
        self.parts = 0  # received in this window
        self.losses = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(self._address)

    def receive(self) -> list[bytes]:
        """The next message, on this host's clock."""
        parts = self.socket.recv_multipart()
        self.parts += len(parts)
        return localise(self.topic, parts) if self._far else parts

    def empty(self) -> tuple[list[Delivery], list[int]]:
        """Hand over what came."""
        content = list(self.deliveries), list(self.arrivals)
        self.deliveries.clear()
        self.arrivals.clear()
        return content

    def lose(self) -> None:
        """Note that the connection is gone."""
        recv_monitor_message(self.losses)
        self._lost = True

    def mend(self) -> None:
        """After a loss. ZeroMQ does so itself, except after a message that was too large: then it would stay deaf."""
        if not self._lost or monotonic_ns() < self._due_ns:
            return
        self._lost, self._due_ns = False, monotonic_ns() + RECONNECT_NS
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disconnect(self._address)
        self.socket.connect(self._address)

    def close(self) -> None:
        """Free both sockets."""
        self.socket.disable_monitor()
        self.losses.close(0)
        self.socket.close(0)


class Subscriber:
    """The newest of several topics: `inputs.update()`, then `inputs["chunk"].message`. For one thread."""

    def __init__(self, run_dir: Path, topics: Sequence[Topic], now: Callable[[], int] = monotonic_ns) -> None:
        """Connect; whether anyone publishes shows in `Input.alive`."""
        self._inputs = {topic.name: Input(topic) for topic in topics}
        self._lines = {topic.name: _Line(run_dir, topic) for topic in topics}
        self._now = now
        self._mail = threading.Condition()
        self._waiting = False  # whether anything came since the last update
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="subscriber", daemon=True)
        self._thread.start()

    def __getitem__(self, name: str) -> Input:
        return self._inputs[name]

    def update(self, timeout_s: float = 0.0) -> None:
        """Take in what came; with a timeout, first wait for something to come."""
        content = self._empty(timeout_s)
        now = self._now()
        for name, (deliveries, arrivals) in content.items():
            self._inputs[name].take(deliveries, arrivals, now)

    def drain(self, timeout_s: float = 0.0) -> dict[str, list[Delivery]]:
        """What came by topic, oldest first, as bytes, for one that keeps it; no `Input` learns of it."""
        return {name: deliveries for name, (deliveries, _) in self._empty(timeout_s).items()}

    def _empty(self, timeout_s: float) -> dict[str, tuple[list[Delivery], list[int]]]:
        with self._mail:
            self._mail.wait_for(lambda: self._waiting, timeout_s)
            self._waiting = False
            return {name: line.empty() for name, line in self._lines.items()}

    def wait_for(self, name: str, timeout_s: float) -> bool:
        """Update until this topic has a message; False if it has none within the timeout."""
        deadline = self._now() + to_ns(timeout_s)
        while self[name].message is None and (remaining := deadline - self._now()) > 0:
            self.update(remaining / NS_PER_S)
        return self[name].message is not None

    def close(self) -> None:
        """End the thread and close its sockets."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _receive(self) -> None:
        """The thread: the sockets are used and closed here."""
        poller = zmq.Poller()
        handlers: dict[zmq.Socket[bytes], Callable[[], None]] = {}
        for line in self._lines.values():
            handlers[line.socket] = partial(self._deliver, line)
            handlers[line.losses] = line.lose
        for socket in handlers:
            poller.register(socket, zmq.POLLIN)
        window_ns = monotonic_ns()
        while not self._closing.is_set():
            for socket, _ in poller.poll(POLL_MS):
                handlers[socket]()
            for line in self._lines.values():
                line.mend()
                if line.parts > MOST_PARTS and line.socket in poller:
                    poller.unregister(line.socket)  # what more it brings waits, or its sender drops it
            if monotonic_ns() - window_ns > WINDOW_NS:
                window_ns = monotonic_ns()
                for line in self._lines.values():
                    line.parts = 0
                    poller.register(line.socket, zmq.POLLIN)
        for line in self._lines.values():
            line.close()

    def _deliver(self, line: _Line) -> None:
        parts, now = line.receive(), self._now()
        with self._mail:
            line.deliveries.append((now, parts))
            line.arrivals.append(now)
            self._waiting = True
            self._mail.notify()
