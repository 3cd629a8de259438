"""Clients that stall, flood or lie, over real sockets: the control loop, the policy and the servers
go on.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from tests.fuzz import resident_mib
from tests.groot_client import GrootClient
from tests.test_serving import GROOT, OPENPI, Served
from tests.tiny_bundle import write_bundle
from trimvla.launch.system.client import SystemClient
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Frame,
    JointState,
    Report,
    Task,
)
from trimvla.runtime.bus.sockets import Publisher, Subscriber, endpoint
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.wire import encode
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, wall_ns
from trimvla.runtime.control import process as control
from trimvla.runtime.control.process import ControlConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.inference import process as policy_process
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.servers.packing import MAX_BYTES, pack

LIMITS = Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,))
HZ = 20
PATIENCE_S = 60.0  # for a second of commands, on a machine that is busy with other things too
GROWTH_MIB = 150  # what sockets may hold back; a leak of a flood would be gigabytes

VALID = ActionChunk(
    time_ns=1,
    episode=1,
    actions=((0.0,) * 7,),
    control_hz=HZ,
    kinds=("delta",) * 6 + ("gripper",),
    instruction="go",
    valid_rows=1,
    produced_ns=1,
    frame_sequence=0,
    seed=(0,),
)


def garbage() -> Iterator[list[bytes]]:
    return itertools.repeat([b"chunk", b"\xc1" * 1000])


def another_schema() -> Iterator[list[bytes]]:
    return itertools.repeat(
        [b"chunk", msgspec.msgpack.encode({**msgspec.to_builtins(VALID), "actions": "all"})]
    )


def oversized() -> Iterator[list[bytes]]:
    return itertools.repeat([b"chunk", bytes(topic("chunk").max_bytes * 4)])


def many_parts() -> Iterator[list[bytes]]:
    return itertools.repeat([b"chunk", *[b"x"] * 500])


def old_chunks() -> Iterator[list[bytes]]:
    return (
        encode(topic("chunk"), msgspec.structs.replace(VALID, sequence=number))
        for number in itertools.count()
    )


def flood(
    address: str, lie: Callable[[], Iterator[list[bytes]]], begun: Event, stop: Event
) -> None:
    """Publish lies at somebody's address, as fast as can be."""
    with zmq.Context() as context, context.socket(zmq.PUB) as liar:
        liar.setsockopt(zmq.LINGER, 0)
        liar.bind(address)
        begun.set()
        messages = lie()
        while not stop.is_set():
            for parts in itertools.islice(messages, 20):
                liar.send_multipart(parts)
            time.sleep(0.001)  # the machine's cores are the loop's too


@contextmanager
def flooding(
    address: str,
    lie: Callable[[], Iterator[list[bytes]]],
    meanwhile: Callable[[], None] = lambda: time.sleep(0.02),
) -> Iterator[None]:
    """Somebody who floods, in a process of its own; until it does, call `meanwhile`, again and
    again.
    """
    spawn = multiprocessing.get_context("spawn")
    begun = spawn.Event()
    stop = spawn.Event()
    process = spawn.Process(target=flood, args=(address, lie, begun, stop))
    process.start()
    try:
        end = time.monotonic() + 60
        while not begun.is_set():
            assert time.monotonic() < end
            meanwhile()
        yield
    finally:
        stop.set()
        process.join()


class Desk:
    """What the process `control` needs to hold, and with a policy's chunk to run."""

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        self.client = stack.enter_context(
            SystemClient(
                run_dir,
                sends=("task", "robot/state"),
                receives=["command"],
                processes=["control"],
            )
        )
        self._began = self._spoke_ns = monotonic_ns()
        self.kinds: list[str] = []
        self.silent_s = 0.0
        """The longest time between two words of its own: a busy machine may stop it."""

    def speak(self, chunks: Publisher | None = None) -> None:
        """Say everything once and hear for a moment."""
        now = monotonic_ns()
        self.silent_s = max(self.silent_s, (now - self._spoke_ns) / NS_PER_S)
        self._spoke_ns = now
        task = Task(time_ns=now, episode=1, instruction="go", started_ns=self._began)
        self.client.send("task", task)
        self.client.send("robot/state", JointState(time_ns=now, position=(0.0,), gripper=1.0))
        if chunks is not None:
            chunks.send(msgspec.structs.replace(VALID, time_ns=now, produced_ns=now))
        self.client.receive(0.02)
        fresh = self.client["command"].fresh
        self.kinds += [message.kind for message in fresh if isinstance(message, Command)]

    def until(self, state: str, chunks: Publisher | None = None) -> None:
        end = time.monotonic() + PATIENCE_S
        while (report := self.report()) is None or report.state != state:
            assert time.monotonic() < end, report
            self.speak(chunks)

    def ticks(self) -> int:
        """Of control, as it last reported."""
        report = self.report()
        return 0 if report is None else report.counters["ticks"]

    def report(self) -> Report | None:
        """The newest of control."""
        return self.client.reports().get("control")


@contextmanager
def controlling(run_dir: Path) -> Iterator[None]:
    """The process `control` in a thread."""
    stop = threading.Event()
    config = ControlConfig(LIMITS, hz=HZ, state_s=5.0)
    process = threading.Thread(target=control.run, args=(config, run_dir, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(5)
    assert not process.is_alive()


@pytest.mark.parametrize("lie", [garbage, another_schema, oversized, many_parts, old_chunks])
def test_control_goes_on_whatever_comes_as_a_chunk(tmp_path, lie):
    with ExitStack() as stack:
        desk = Desk(tmp_path, stack)
        stack.enter_context(controlling(tmp_path))
        with Publisher(tmp_path, topic("chunk")) as chunks:
            desk.until("running", chunks)
        desk.until("hold")  # the policy is gone; somebody takes its place
        memory = resident_mib()
        desk.silent_s = 0.0
        lies = flooding(endpoint(tmp_path, topic("chunk")), lie, meanwhile=desk.speak)
        with lies, stalled_reader(endpoint(tmp_path, topic("command"))):
            desk.kinds.clear()
            ticks = desk.ticks()
            end = time.monotonic() + PATIENCE_S
            while desk.ticks() < ticks + HZ:
                assert time.monotonic() < end, desk.report()
                desk.speak()
        assert set(desk.kinds) <= {"hold"}
        # without a task for 1 s there is no episode, and no command
        assert len(desk.kinds) >= HZ / 2 or desk.silent_s > 0.5
        assert resident_mib() - memory < GROWTH_MIB
        with Publisher(tmp_path, topic("chunk")) as chunks:
            desk.until("running", chunks)  # the true policy is heard again


@contextmanager
def stalled_reader(address: str) -> Iterator[None]:
    """A subscriber that never reads."""
    with zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.setsockopt(zmq.LINGER, 0)
        reader.set_hwm(1)
        reader.subscribe(b"")
        reader.connect(address)
        yield


def frames() -> Iterator[list[bytes]]:
    """True ones among broken ones."""
    front = topic("front/color")
    picture = np.zeros((480, 640, 3), np.uint8)
    for number in itertools.count():
        picture[0, 0] = number % 256
        name, header, payload = encode(
            front, Frame("front", monotonic_ns(), picture, number, wall_ns(monotonic_ns()))
        )
        yield [name, header, payload]
        yield [name, header[:-5], payload]
        yield [name, header, payload[:-1]]
        yield [name, b"{}", bytes(1000)]


def test_the_policy_goes_on_among_frames_that_flood_and_lie(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    front = topic("front/color")
    stop = threading.Event()
    config = PolicyConfig(bundle=str(bundle), max_hz=20.0)
    process = threading.Thread(target=policy_process.run, args=(config, tmp_path, stop))
    names = [topic("chunk"), topic("policy/report")]
    with Subscriber(tmp_path, names) as hears, Publisher(tmp_path, topic("task")) as tasks:
        process.start()
        try:
            began = monotonic_ns()
            with flooding(endpoint(tmp_path, front), frames):
                end = time.monotonic() + 20
                while hears["chunk"].received < 10:
                    assert time.monotonic() < end, hears["policy/report"].message
                    now = monotonic_ns()
                    tasks.send(
                        Task(
                            time_ns=now,
                            episode=1,
                            instruction="pick up the red cube",
                            started_ns=began,
                        )
                    )
                    hears.update(0.02)
        finally:
            stop.set()
            process.join(10)
    assert not process.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    policy = Policy.load(write_bundle(tmp_path / "bundle"), threads=1)
    with Served(policy) as served:
        yield served
    policy.close()


def requests_without_end() -> bytes:
    return pack({"endpoint": "get_action", "data": {"observation": GROOT}}, "groot")


FLOODS = {"valid": requests_without_end(), "garbage": b"\xc1" * 1000, "huge": bytes(MAX_BYTES + 1)}


@pytest.mark.parametrize("message", FLOODS.values(), ids=FLOODS)
def test_the_zeromq_server_serves_others_while_one_floods_and_does_not_read(served, message):
    memory = resident_mib()
    stop = threading.Event()

    def flood() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as greedy:
            greedy.setsockopt(zmq.LINGER, 0)
            greedy.set_hwm(2)
            greedy.connect(served.groot)
            while not stop.is_set():
                with contextlib.suppress(zmq.Again):
                    greedy.send_multipart([b"", message], zmq.DONTWAIT, copy=False)
                time.sleep(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        time.sleep(0.2)
        with GrootClient(served.groot) as client:
            for step in range(20):
                assert client.get_action(GROOT)[1]["step"] == step
    finally:
        stop.set()
        thread.join()
    assert resident_mib() - memory < GROWTH_MIB + 4 * MAX_BYTES / 2**20


def test_the_websocket_server_serves_others_while_some_stall_flood_and_lie(served):
    sync = pytest.importorskip("websockets.sync.client")
    exceptions = pytest.importorskip("websockets.exceptions")
    url = f"ws://127.0.0.1:{served.openpi}"
    memory = resident_mib()
    observation = pack(OPENPI, "openpi")
    with ExitStack() as stack:
        # connections that say nothing, too little, nonsense
        for words in (b"", b"GET / HTTP/1.1\r\n", b"\xff" * 4096):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.openpi))).sendall(
                words
            )
        stalled = stack.enter_context(sync.connect(url, max_size=None))
        flood = threading.Thread(target=send_until_stopped, args=(stalled, observation))
        flood.start()
        for lie in (b"\xc1", "text", observation[:-10], pack({"prompt": 3}, "openpi")):
            with sync.connect(url) as liar:
                liar.recv(20)
                liar.send(lie)
                assert isinstance(liar.recv(20), str)  # that is how openpi's client knows an error
        with sync.connect(url, max_size=None) as huge:
            huge.recv(20)
            with pytest.raises(exceptions.ConnectionClosed):
                huge.send(bytes(MAX_BYTES + 1))
                huge.recv(20)
        with sync.connect(url) as friend:
            friend.recv(20)
            for _ in range(20):
                friend.send(observation)
                assert isinstance(friend.recv(20), bytes)
        stalled.socket.shutdown(socket.SHUT_RDWR)
        flood.join(20)
        assert not flood.is_alive()
    assert resident_mib() - memory < GROWTH_MIB + 4 * MAX_BYTES / 2**20


def send_until_stopped(client: object, message: bytes) -> None:
    """Send without reading an answer, until the connection breaks."""
    with contextlib.suppress(Exception):
        while True:
            client.send(message)  # type: ignore[attr-defined]
