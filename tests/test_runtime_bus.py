"""The bus over real sockets: newest wins, queues keep, freshness is told, bad bytes are counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from trimvla.runtime.bus.inputs import Batch, Delivery
from trimvla.runtime.bus.lines import Line
from trimvla.runtime.bus.messages import Command, Frame, JointState, Task
from trimvla.runtime.bus.sockets import (
    MOST_PARTS,
    WINDOW_NS,
    Input,
    Publisher,
    Subscriber,
    endpoint,
)
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.wire import encode
from trimvla.runtime.clock import NS_PER_S, Rate, monotonic_ns
from trimvla.runtime.errors import ConfigError

STATE = topic("robot/state")
COMMAND = topic("command")
FRONT = topic("front/color")


def state(gripper: float = 1.0) -> JointState:
    return JointState(time_ns=monotonic_ns(), position=(0.0, 0.1), gripper=gripper)


def command(value: float) -> Command:
    return Command(time_ns=1, episode=0, kind="action", action=(value,))


@pytest.fixture
def subscriber(tmp_path: Path) -> Iterator[Subscriber]:
    with Subscriber(tmp_path, [STATE, COMMAND, FRONT]) as inputs:
        yield inputs


def connect(
    publisher: Publisher, inputs: Subscriber, message: JointState | Command | Frame
) -> None:
    """Repeat a message until it arrives: late joiners miss what was sent before."""
    deadline = time.monotonic() + 5
    while inputs[publisher.topic.name].message is None:
        assert time.monotonic() < deadline, "nothing arrived"
        publisher.send(message)
        inputs.update(0.02)


def test_subscribers_may_come_first_and_see_the_newest(tmp_path, subscriber):
    assert not subscriber["robot/state"].alive and subscriber["robot/state"].message is None
    with Publisher(tmp_path, STATE) as publisher:
        connect(publisher, subscriber, state())
        for gripper in (0.1, 0.2, 0.3):
            publisher.send(state(gripper))
        time.sleep(0.1)
        subscriber.update()
    robot = subscriber["robot/state"]
    assert isinstance(robot.message, JointState) and robot.message.gripper == 0.3
    assert len(robot.fresh) == 1 and robot.updated and robot.alive and robot.valid
    assert robot.missed == 2  # superseded, and counted
    subscriber.update()
    assert not robot.updated and robot.alive


def test_queues_keep_every_message_in_order(tmp_path, subscriber):
    with Publisher(tmp_path, COMMAND) as publisher:
        connect(publisher, subscriber, command(0.0))
        subscriber.update()
        for value in range(1, 11):
            publisher.send(command(float(value)))
        time.sleep(0.1)
        subscriber.update()
    got = [m.action[0] for m in subscriber["command"].fresh if isinstance(m, Command)]
    assert got[-10:] == [float(v) for v in range(1, 11)]
    assert subscriber["command"].missed == 0


def test_a_busy_reader_gets_the_newest_large_frame(tmp_path, subscriber):
    image = np.zeros((480, 640, 3), np.uint8)
    with Publisher(tmp_path, FRONT) as publisher:
        connect(publisher, subscriber, Frame("front", 0, image))
        for number in range(1, 21):
            publisher.send(Frame("front", number, image))
            time.sleep(0.01)
        time.sleep(0.1)
        subscriber.update()
    newest = subscriber["front/color"].message
    assert isinstance(newest, Frame) and newest.time_ns == 20


def test_a_publisher_may_come_back(tmp_path, subscriber):
    with Publisher(tmp_path, STATE) as publisher:
        connect(publisher, subscriber, state())
    with Publisher(tmp_path, STATE) as publisher:
        deadline = time.monotonic() + 5
        while getattr(subscriber["robot/state"].message, "gripper", None) != 0.5:
            assert time.monotonic() < deadline
            publisher.send(state(0.5))
            subscriber.update(0.02)


def test_update_waits_for_the_first_message_only_as_long_as_told(tmp_path, subscriber):
    start = time.monotonic()
    assert not subscriber.wait_for("robot/state", 0.1)
    assert 0.08 < time.monotonic() - start < 2.0
    with Publisher(tmp_path, STATE) as publisher:
        stop = threading.Event()
        sender = threading.Thread(
            target=lambda: [publisher.send(state()) or stop.wait(0.01) for _ in range(100)]
        )
        sender.start()
        assert subscriber.wait_for("robot/state", 5.0)
        stop.set()
        sender.join()


def test_bytes_that_are_no_message_are_counted_and_change_nothing(tmp_path, subscriber):
    with Publisher(tmp_path, STATE) as publisher:
        connect(publisher, subscriber, state(0.7))
    robot = subscriber["robot/state"]
    with zmq.Context.instance().socket(zmq.PUB) as liar:
        liar.bind(endpoint(tmp_path, STATE))
        for refused in (1, 2):
            deadline = time.monotonic() + 5
            while robot.refused < refused:
                assert time.monotonic() < deadline
                liar.send_multipart([b"robot/state", b"\xc1"])
                subscriber.update(0.05)
            # too large: ends the connection alone
            liar.send_multipart([b"robot/state", bytes(STATE.max_bytes * 2)])
    assert not robot.valid and "robot/state" in robot.problem
    assert isinstance(robot.message, JointState) and robot.message.gripper == 0.7


def test_a_flood_is_taken_in_small_parts_and_others_are_heard(tmp_path, subscriber, monkeypatch):
    taken: Counter[str] = Counter()
    receive = Line.receive

    def counting(line: Line) -> list[bytes]:
        taken[line.topic.name] += 1
        return receive(line)

    with Publisher(tmp_path, COMMAND) as publisher, zmq.Context.instance().socket(zmq.PUB) as liar:
        liar.bind(endpoint(tmp_path, STATE))
        connect(publisher, subscriber, command(1.0))
        monkeypatch.setattr(Line, "receive", counting)
        start = time.monotonic()
        heard = 0
        sent = 0
        while (took := time.monotonic() - start) < 1:
            for _ in range(20):
                liar.send_multipart([b"robot/state", b"\xc1"])
            sent += 20
            publisher.send(command(1.0))
            subscriber.update(0.001)
            heard += len(subscriber["command"].fresh)
            time.sleep(0.0005)
    windows = took / (WINDOW_NS / NS_PER_S) + 1
    assert 0 < taken["robot/state"] <= windows * (MOST_PARTS // 2 + 1) < sent
    assert heard > 0.9 * sent / 20


def test_freshness_follows_the_clock():
    told = Input(STATE)
    second = NS_PER_S

    def deliver(sequence: int, at: float, true_at: float | None = None) -> None:
        time_ns = round((at if true_at is None else true_at) * second)
        parts = encode(
            STATE, JointState(sequence=sequence, time_ns=time_ns, position=(), gripper=0.0)
        )
        told.take(
            [Batch([Delivery(round(at * second), parts)], [round(at * second)])], round(at * second)
        )

    for number in range(10):
        deliver(number, 1 + number * 0.05)
    assert told.alive and told.rate_ok and told.hz == pytest.approx(20)
    deliver(14, 1.5)
    assert told.missed == 4
    told.take([], round(1.8 * second))
    assert told.alive and not told.rate_ok and not told.updated
    told.take([], round(2.1 * second))
    assert not told.alive and told.silence_s == pytest.approx(0.6)
    deliver(15, 2.2, true_at=1.6)
    assert told.updated and not told.alive and told.silent, (
        "a message that waited on its way is no sign of life"
    )
    deliver(16, 2.3, true_at=9.0)
    told.take([], round(2.9 * second))
    assert not told.alive and told.silent, "a time ahead makes no message younger than its arrival"


def test_closing_leaves_no_socket_file_and_no_thread(tmp_path):
    before = threading.active_count()
    with Publisher(tmp_path, STATE), Subscriber(tmp_path, [STATE]):
        assert any(tmp_path.iterdir())
    deadline = time.monotonic() + 5
    while any(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert threading.active_count() == before


def test_places_that_hold_no_socket_are_named(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with pytest.raises(ConfigError, match="'robot/state': cannot bind"):
        Publisher(tmp_path / "absent", STATE)
    with pytest.raises(ConfigError, match="at most 107 bytes for the socket's path"):
        Publisher(long, STATE)
    with pytest.raises(ConfigError, match="at most 107 bytes for the socket's path"):
        Subscriber(long, [STATE])
    with pytest.raises(ConfigError, match="expected an existing run directory"):
        Subscriber(tmp_path / "absent", [STATE])


def test_a_task_keeps_its_words(tmp_path):
    with (
        Subscriber(tmp_path, [topic("task")]) as inputs,
        Publisher(tmp_path, topic("task")) as publisher,
    ):
        task = Task(time_ns=1, episode=2, instruction="stapel die Würfel", started_ns=1)
        connect(publisher, inputs, task)  # type: ignore[arg-type]
        assert getattr(inputs["task"].message, "instruction", "") == "stapel die Würfel"


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.ns = 0

    def now(self) -> int:
        return self.ns

    def sleep(self, duration_s: float) -> None:
        self.ns += round(duration_s * NS_PER_S) + 1_000_000  # wakes 1 ms late


def test_a_rate_does_not_drift_and_counts_what_it_missed():
    clock = FakeTime()
    rate = Rate(10, clock.now, clock.sleep)
    deadlines = [rate.wait() for _ in range(100)]
    assert deadlines == [k * 100_000_000 for k in range(1, 101)]
    assert rate.report().late == 0 and rate.report().worst_lag_ms == pytest.approx(1.0)
    assert rate.report().achieved_hz == pytest.approx(10, rel=1e-3)
    clock.ns += 350_000_000  # a tick of three and a half periods
    assert rate.wait() == 10_300_000_000
    assert rate.report().skipped == 2 and rate.report().late == 1
    assert rate.wait() == 10_400_000_000
    with pytest.raises(ConfigError, match="'hz'"):
        Rate(0)


def test_a_rate_that_was_stopped_in_its_sleep_skips_what_it_missed():
    clock = FakeTime()
    rate = Rate(10, clock.now, lambda duration_s: clock.sleep(duration_s + 2.03))
    assert rate.wait() == 2_100_000_000 and clock.now() == 2_131_000_000
    assert (rate.report().skipped, rate.report().late, rate.report().worst_lag_ms) == (
        20,
        1,
        pytest.approx(2031),
    )
