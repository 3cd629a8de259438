"""Publish and subscribe over ZeroMQ: newest wins, and every input carries its freshness.

Each topic has its own `ipc` socket in the run directory, which belongs to one user; or, where
`network` gives one, a TCP address, with keys. Publishers bind and subscribers connect, in any
order. A topic has one publisher: a second one is an error, however the run directory is reached
(`claim`). `estop`, `deadman` and `operator` may have several on one host, each with a socket of its
own; a subscriber finds them all. A publisher never waits: what a reader cannot take is dropped. A
subscriber receives in a thread of its own, so that arrival times are true and nothing old waits in
a socket while its owner is busy. Topics whose messages all count (`depth` above 1) keep a queue.
There is no replay for late joiners: what must reach them is repeated by its sender. A topic that
floods is taken in small parts. Knows topics and sockets; not what messages mean.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

import msgspec
import zmq

from trimvla.runtime.bus.claim import Claim, endpoint, socket_path
from trimvla.runtime.bus.inputs import Batch, Delivery, Input
from trimvla.runtime.bus.lines import Line
from trimvla.runtime.bus.messages import Frame, Message
from trimvla.runtime.bus.network import RemoteEndpoint, remote_endpoint, stamp
from trimvla.runtime.bus.run_dir import check_run_dir, is_own_socket
from trimvla.runtime.bus.topics import Topic
from trimvla.runtime.bus.wire import Codec, encode
from trimvla.runtime.bus.zap import ZapAuthenticator
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns, wall_ns
from trimvla.runtime.errors import ConfigError

__all__ = ["Delivery", "Input", "Publisher", "Subscriber", "endpoint"]

LINGER_MS = 200  # what a closing publisher may take to hand over its last messages
POLL_MS = 50  # how long a closing subscriber may take to notice
# in which a topic may bring so much and no more, that a flood leaves its reader the processor:
WINDOW_NS = 50_000_000
MOST_PARTS = 300  # parts of messages: far above 1 kHz
SETTLE_NS = 250_000_000  # within which readers that are there find a new one of several senders
# within which a sender of several need not repeat itself: a reader takes some 3 kHz from each
REPEAT_NS = 1_000_000
NO_READER_NS = 500_000_000  # without any reader by then there is none


class Publisher:
    """A topic's sender. For one thread.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.runtime import JointState, Publisher, Subscriber, monotonic_ns, topic
        >>> run_dir = Path(tempfile.mkdtemp())
        >>> states = topic("robot/state")
        >>> with Publisher(run_dir, states) as sender, Subscriber(run_dir, [states]) as reader:
        ...     while not reader["robot/state"].updated:
        ...         now = monotonic_ns()
        ...         sender.send(JointState(time_ns=now, position=(0.3, 0.1), gripper=1.0))
        ...         reader.update(0.1)
        ...     reader["robot/state"].message.position
        (0.3, 0.1)
    """

    def __init__(self, run_dir: Path, topic: Topic, codec: Codec = "raw_rgb8") -> None:
        """Bind. `codec` is for frames.

        Of a topic that may have several senders, it takes up to 0.5 s, until readers have found
        this one: the first message reaches those that are there already.

        Raises ConfigError where the topic has a publisher, which it names, and for a run directory
        that cannot be trusted or cannot hold a socket.
        """
        self.topic = topic
        self._codec: Codec = codec
        self.sent = 0
        self._last_sent: Message | None = None
        self._last_sent_ns = 0
        with contextlib.ExitStack() as stack:
            try:
                self._open(run_dir, stack)
            except (zmq.ZMQError, OSError, ConfigError) as error:
                raise ConfigError(f"topic '{topic.name}': cannot bind: {error}") from None
            self._closing = stack.pop_all()
        if topic.senders > 1:
            self._wait_for_readers()

    def _open(self, run_dir: Path, stack: contextlib.ExitStack) -> None:
        check_run_dir(run_dir)
        far = remote_endpoint(run_dir, self.topic.name)
        self._stamped = far is not None and self.topic.type is not Frame
        claim = Claim(run_dir, replace(self.topic, senders=1) if far else self.topic)
        stack.callback(claim.release)  # last, when nobody can connect any more
        door = ZapAuthenticator(far.keys, allow_plain=far.allow_plain) if far else None
        if door is not None:
            stack.callback(door.close)
        several = self.topic.senders > 1
        context = door.context if door else zmq.Context() if several else zmq.Context.instance()
        if several and door is None:
            stack.callback(context.term)  # which waits for what is on its way, at most LINGER_MS
        self._socket: zmq.Socket[bytes] = context.socket(zmq.XPUB if several else zmq.PUB)
        stack.callback(self._socket.close)
        self._socket.set_hwm(self.topic.high_water)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._bind(far, door, claim)

    def _bind(
        self, far: RemoteEndpoint | None, door: ZapAuthenticator | None, claim: Claim
    ) -> None:
        if far is None or door is None:
            # else ZeroMQ replaces and removes files unasked
            self._socket.setsockopt(zmq.USE_FD, claim.listen())
            self._socket.bind(f"ipc://{claim.path}")
            self._socket.setsockopt(zmq.USE_FD, -1)
        else:
            far.check()
            door.bind(self._socket, far.place.endpoint)

    def _wait_for_readers(self) -> None:
        """Return when the readers that are there have had time to subscribe, or when there is
        none.
        """
        begun = monotonic_ns()
        found = False
        while (waited := monotonic_ns() - begun) < (SETTLE_NS if found else NO_READER_NS):
            left_ns = (SETTLE_NS if found else NO_READER_NS) - waited
            if self._socket.poll(left_ns // 1_000_000 + 1):
                found |= self._take_subscriptions()

    def _take_subscriptions(self) -> bool:
        """Take from the socket who subscribed; whether anybody did."""
        found = False
        with contextlib.suppress(zmq.Again):
            while True:
                found |= self._socket.recv(zmq.DONTWAIT).startswith(b"\x01")
        return found

    def send(self, message: Message | Frame) -> None:
        """Send with the next sequence number.

        Never waits. Raises WireError for a message that is not the topic's.

        Of a topic that may have several senders, one that only repeats a message from less than 1
        ms ago is left out: a loop without a pause does not fill the queue in which a press would
        then find no room.
        """
        if self.topic.senders > 1:
            self._take_subscriptions()
            if self._repeats(message):
                return
        parts = encode(self.topic, _numbered(message, self.sent), self._codec)
        if self._stamped:
            parts.append(stamp())
        self._socket.send_multipart(parts, zmq.DONTWAIT)
        self.sent += 1

    def _repeats(self, message: Message | Frame) -> bool:
        """Whether it equals the one before, which has just been sent."""
        if not isinstance(message, Message):
            return False
        now = monotonic_ns()
        bare = msgspec.structs.replace(message, sequence=0, time_ns=0)
        if bare == self._last_sent and now - self._last_sent_ns < REPEAT_NS:
            return True
        self._last_sent = bare
        self._last_sent_ns = now
        return False

    def close(self) -> None:
        """Hand over what is on its way; no new reader finds the topic, and another publisher may
        take it.
        """
        self._closing.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def _numbered(message: Message | Frame, sequence: int) -> Message | Frame:
    """With its sequence number; a frame also with its capture on the wall clock, which is derived
    here alone.
    """
    if isinstance(message, Frame):
        label_ns = wall_ns(message.time_ns) if message.age_known else 0
        return replace(message, sequence=sequence, utc_ns=max(0, label_ns))
    return msgspec.structs.replace(message, sequence=sequence)


class Subscriber:
    """The newest of several topics: `inputs.update()`, then `inputs["chunk"].message`.

    For one thread.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.runtime import Subscriber, topic
        >>> with Subscriber(Path(tempfile.mkdtemp()), [topic("command")]) as commands:
        ...     commands.update(0.01)  # takes in what came; waits for 10 ms at most
        ...     commands["command"].updated
        False
    """

    def __init__(
        self, run_dir: Path, topics: Sequence[Topic], now: Callable[[], int] = monotonic_ns
    ) -> None:
        """Connect; whether anyone publishes shows in `Input.alive`.

        Raises ConfigError for a run directory that is not there or cannot be trusted.
        """
        check_run_dir(run_dir)
        self._run_dir = run_dir
        self._inputs = {topic.name: Input(topic) for topic in topics}
        self._lines = [Line(run_dir, topic) for topic in topics]
        several = [
            topic
            for topic in topics
            if topic.senders > 1 and remote_endpoint(run_dir, topic.name) is None
        ]
        self._unknown = {
            socket_path(run_dir, topic, number).name: (topic, number)
            for topic in several
            for number in range(1, topic.senders)
        }
        """Where senders may come to be: file name -> topic and number."""
        self._now = now
        self._mail = threading.Condition()
        self._waiting = False  # whether anything came since the last update
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="subscriber", daemon=True)
        self._thread.start()

    def __getitem__(self, name: str) -> Input:
        return self._inputs[name]

    def __iter__(self) -> Iterator[Input]:
        return iter(self._inputs.values())

    def update(self, timeout_s: float = 0.0) -> None:
        """Take in what came; with a timeout, first wait for something to come."""
        content = self._empty(timeout_s)
        now = self._now()
        for name, batches in content.items():
            self._inputs[name].take(batches, now)

    def drain(self, timeout_s: float = 0.0) -> dict[str, list[Delivery]]:
        """What came by topic, as bytes, for one that keeps it; no `Input` learns of it."""
        content = self._empty(timeout_s)
        return {
            name: [item for batch in batches for item in batch.deliveries]
            for name, batches in content.items()
        }

    def _empty(self, timeout_s: float) -> dict[str, list[Batch]]:
        content: dict[str, list[Batch]] = {name: [] for name in self._inputs}
        with self._mail:
            self._mail.wait_for(lambda: self._waiting, timeout_s)
            self._waiting = False
            for line in self._lines:
                content[line.topic.name].append(line.empty())
        return content

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> None:
        """The thread: the sockets are used and closed here."""
        poller = zmq.Poller()
        handlers: dict[zmq.Socket[bytes], Callable[[], None]] = {}
        for line in self._lines:
            self._watch(line, poller, handlers)
        window_ns = monotonic_ns()
        while not self._closing.is_set():
            for socket, _ in poller.poll(POLL_MS):
                handlers[socket]()
            for line in self._lines:
                line.reconnect()
                if line.parts > MOST_PARTS and line.socket in poller:
                    # what more it brings waits, or its sender drops it
                    poller.unregister(line.socket)
            if monotonic_ns() - window_ns > WINDOW_NS:
                window_ns = monotonic_ns()
                for line in self._lines:
                    line.parts = 0
                    poller.register(line.socket, zmq.POLLIN)
                for line in self._find_senders():
                    self._watch(line, poller, handlers)
        for line in self._lines:
            line.close()

    def _watch(
        self, line: Line, poller: zmq.Poller, handlers: dict[zmq.Socket[bytes], Callable[[], None]]
    ) -> None:
        handlers[line.socket] = partial(self._deliver, line)
        handlers[line.losses] = line.on_disconnect
        for socket in (line.socket, line.losses):
            poller.register(socket, zmq.POLLIN)

    def _find_senders(self) -> list[Line]:
        """Lines to senders that are new on topics which may have several."""
        if not self._unknown:
            return []
        found: list[Line] = []
        there: set[str] = set()
        with contextlib.suppress(OSError):
            there.update(os.listdir(self._run_dir))  # noqa: PTH208 - 20 times a second, so names are enough
        for name in self._unknown.keys() & there:
            # tried again; the thread must go on
            with contextlib.suppress(ConfigError, OSError, zmq.ZMQError):
                if is_own_socket(self._run_dir / name):
                    found.append(Line(self._run_dir, *self._unknown[name]))
        for line in found:
            del self._unknown[socket_path(self._run_dir, line.topic, line.sender).name]
        with self._mail:
            self._lines += found
        return found

    def _deliver(self, line: Line) -> None:
        parts = line.receive()
        now = self._now()
        with self._mail:
            line.queue(now, parts)
            self._waiting = True
            self._mail.notify()
