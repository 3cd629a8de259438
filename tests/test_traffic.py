"""Traffic that is no message: what comes before it still counts, and reports and refusals name
it.
"""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np

from tests.tiny_bundle import write_bundle
from trimvla.runtime.bus.inputs import Batch, Delivery, Input
from trimvla.runtime.bus.lines import Line
from trimvla.runtime.bus.messages import Frame, JointState, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.bus.traffic import MAX_REASON, explain
from trimvla.runtime.bus.wire import encode
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.inference import process as policy_process
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.sim.robots.faults import FaultyPublisher

STATE = topic("robot/state")
PATIENCE_S = 30.0


def state(sequence: int) -> list[bytes]:
    return encode(STATE, JointState(sequence=sequence, time_ns=1, position=(), gripper=0.0))


def test_a_good_message_is_not_displaced_by_one_that_is_none(tmp_path: Path) -> None:
    line = Line(tmp_path, STATE)
    source = Input(STATE)
    for number in range(3):
        line.queue(number, state(number))
    line.queue(3, [b"robot/state", b"\xc1"])
    source.take([line.empty()], 3)
    line.close()
    assert source.message is not None and source.message.sequence == 2 and source.received_ns == 2
    assert not source.valid and source.refused == 1 and len(source.fresh) == 1


def test_trouble_is_told_while_it_lasts() -> None:
    source = Input(STATE)
    for number in range(17):
        source.take([Batch([Delivery(number, state(number))], [number])], number)
    assert source.trouble == explain("", [source]) == ""
    for number in range(17, 20):
        source.take([Batch([Delivery(number, [b"robot/state", b"\xc1"])], [number])], number)
    assert source.trouble.startswith(
        "3 of the last 20 messages on 'robot/state' were refused: topic 'robot/state'"
    )
    assert explain("because", [source]) == f"because; {source.trouble}"
    assert len(explain("x" * 9000, [source])) <= MAX_REASON
    source.take([], 6 * NS_PER_S)
    assert source.trouble == "" and source.problem


def test_the_policys_refusal_names_corrupt_pictures(tmp_path: Path) -> None:
    stop = threading.Event()
    config = PolicyConfig(bundle=str(write_bundle(tmp_path / "bundle")), max_hz=20.0)
    process = threading.Thread(target=policy_process.run, args=(config, tmp_path, stop))
    rng = np.random.default_rng(0)
    numbers = itertools.count()
    with (
        Subscriber(tmp_path, [topic("chunk"), topic("policy/report"), topic("refusal")]) as hears,
        Publisher(tmp_path, topic("task")) as tasks,
        FaultyPublisher(tmp_path, topic(color("front"))) as frames,
    ):
        process.start()
        try:
            began = monotonic_ns()
            end = time.monotonic() + PATIENCE_S
            while "were refused" not in (reason := getattr(hears["refusal"].message, "reason", "")):
                assert time.monotonic() < end, (reason, hears["policy/report"].message)
                now = monotonic_ns()
                tasks.send(
                    Task(
                        time_ns=now, episode=1, instruction="pick up the red cube", started_ns=began
                    )
                )
                frame = Frame("front", now, np.full((48, 64, 3), next(numbers) % 256, np.uint8))
                if hears["chunk"].received < 3:
                    frames.send(frame)
                else:
                    frames.send_damaged(frame, rng)
                hears.update(0.03)
            until_reported = time.monotonic() + PATIENCE_S
            while (
                not isinstance(report := hears["policy/report"].message, Report)
                or not report.problems
            ):
                assert time.monotonic() < until_reported
                hears.update(0.1)
        finally:
            stop.set()
            process.join(10)
    assert "messages on 'front/color' were refused: topic 'front/color'" in reason
    assert report.counters["refused.front/color"] > 0 and set(report.problems) == {"front/color"}
    assert "hz.front/color" in report.values and "missed.task" in report.counters
