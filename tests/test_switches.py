"""Emergency stops, deadman's switches and operators, several of each, through real sockets to the
process `control`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.test_curve import free_ports
from trimvla.launch import cli
from trimvla.runtime.bus import curve
from trimvla.runtime.bus.inputs import Batch, Delivery, Input
from trimvla.runtime.bus.lines import Line
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    EStop,
    JointState,
    Message,
    Operator,
    Report,
    Task,
)
from trimvla.runtime.bus.network import Network, RemoteTopic, install
from trimvla.runtime.bus.sockets import Publisher, Subscriber, endpoint
from trimvla.runtime.bus.switches import enabling_switch, stop_button
from trimvla.runtime.bus.topics import SENDERS, topic
from trimvla.runtime.bus.wire import encode
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.control import process as control
from trimvla.runtime.control.interlock import InterlockConfig
from trimvla.runtime.control.process import ControlConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import ConfigError

LIMITS = Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,))
PATIENCE_S = 30.0
ESTOP = topic("estop")
DEADMAN = topic("deadman")
OPERATOR = topic("operator")


def estop(*, pressed: bool = False, source: str = "") -> EStop:
    return EStop(time_ns=monotonic_ns(), pressed=pressed, source=source)


def deadman(*, held: bool = True) -> Deadman:
    return Deadman(time_ns=monotonic_ns(), held=held)


# What several senders say together: pure


def deliver(source: Input, now_s: float, *said: tuple[int, Message]) -> None:
    """Messages of numbered senders, all received now."""
    now = round(now_s * NS_PER_S)
    batches = [
        Batch([Delivery(now, encode(source.topic, message), who)], [now], who)
        for who, message in said
    ]
    source.take(batches, now)


def test_a_press_of_any_sender_counts_and_so_does_the_silence_of_one() -> None:
    source = Input(ESTOP)
    assert stop_button(source) is None
    deliver(source, 1.0, (0, estop()), (1, estop()))
    assert stop_button(source) is not None and not stop_button(source).pressed  # type: ignore[union-attr]
    deliver(source, 1.1, (0, estop(pressed=True, source="wall")), (1, estop()))
    # as long as that sender does not take it back, whatever the other one sends
    for moment in (1.15, 1.2):
        assert (stop_button(source) or estop()).source == "wall"
        deliver(source, moment, (1, estop()))
    deliver(source, 1.25, (0, estop()), (1, estop()))
    assert not (stop_button(source) or estop(pressed=True)).pressed
    for tenth in range(13, 18):
        deliver(source, tenth / 10, (1, estop()))
    assert source.alive and source.silent == (0,)
    assert stop_button(source) is None  # the other goes on, and yet
    source.forget_silent()
    assert stop_button(source) is not None
    deliver(source, 1.8, (0, estop()), (1, estop()))
    deliver(source, 2.2, (1, estop()))
    assert stop_button(source) is None  # it came back, so it is expected again


def test_all_deadmans_switches_must_be_held() -> None:
    source = Input(DEADMAN)
    deliver(source, 1.0, (0, deadman()), (1, deadman(held=False)))
    assert not (enabling_switch(source) or deadman()).held
    deliver(source, 1.1, (0, deadman()), (1, deadman()))
    assert (enabling_switch(source) or deadman(held=False)).held
    deliver(source, 1.2, (0, deadman(held=False)), (0, deadman()), (1, deadman()))
    # let go and held again since the last look
    assert not (enabling_switch(source) or deadman()).held
    deliver(source, 1.6, (0, deadman()))
    assert enabling_switch(source) is None


def test_what_counts_is_kept_whatever_the_depth(tmp_path: Path) -> None:
    for row, counts, others in (
        (ESTOP, estop(pressed=True), estop()),
        (DEADMAN, deadman(held=False), deadman()),
        (OPERATOR, Operator(time_ns=1, request="disarm"), Operator(time_ns=1, request="arm")),
    ):
        line = Line(tmp_path, row)
        for number, message in enumerate([others, counts, *[others] * (10 * row.depth)]):
            line.queue(number, encode(row, message))
        source = Input(row)
        source.take([line.empty()], 1)
        kept = [message for message in source.fresh if type(message) is type(counts)]
        assert sum(row.counts(message) for message in kept) == 1  # type: ignore[misc]
        assert len(source.fresh) <= row.depth + 1
        line.close()


def test_senders_are_counted_apart() -> None:
    source = Input(ESTOP)
    for number in range(1, 11):
        messages = [
            msgspec.structs.replace(estop(), sequence=at) for at in (number, 1000 + 2 * number)
        ]
        deliver(source, number * 0.05, *enumerate(messages))
    assert source.missed == 9 and source.received == 20 and source.senders == 2
    assert source.rate_ok and source.hz == pytest.approx(20)
    for number in range(11, 21):
        deliver(source, number * 0.05, (0, estop()))
    assert source.alive and not source.rate_ok


# Through sockets


@contextmanager
def repeating(
    run_dir: Path, row: Any, make: Callable[[], Message], hz: float
) -> Iterator[Publisher]:
    """A sender in a thread of its own."""
    stop = threading.Event()
    publisher = Publisher(run_dir, row)

    def send() -> None:
        while not stop.wait(1 / hz):
            publisher.send(make())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield publisher
    finally:
        stop.set()
        thread.join()
        publisher.close()


class Stage:
    """A robot, a task and a policy around the process `control`, which has an action all the
    time.
    """

    def __init__(
        self,
        run_dir: Path,
        stack: ExitStack,
        interlock: InterlockConfig | None = None,
        hz: float = 50,
    ) -> None:
        self.hears = stack.enter_context(
            Subscriber(run_dir, [topic("command", hz), topic("control/report")])
        )
        self._began = monotonic_ns()
        self._hz = hz
        self._run_dir = run_dir
        self._stop = threading.Event()
        config = ControlConfig(LIMITS, hz=hz, state_s=5.0, interlock=interlock or InterlockConfig())
        threads = [
            threading.Thread(target=control.run, args=(config, run_dir, self._stop)),
            threading.Thread(target=self._play, args=(run_dir,)),
        ]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(self._stop.set)

    def _play(self, run_dir: Path) -> None:
        with ExitStack() as stack:
            names = ("task", "robot/state", "chunk")
            out = {name: stack.enter_context(Publisher(run_dir, topic(name))) for name in names}
            while not self._stop.wait(0.02):
                now = monotonic_ns()
                task = Task(time_ns=now, episode=1, instruction="go", started_ns=self._began)
                out["task"].send(task)
                out["robot/state"].send(
                    JointState(time_ns=now, position=(now % 997 * 1e-9,) * 6, gripper=1.0)
                )
                out["chunk"].send(chunk(now, self._hz))

    @property
    def report(self) -> Report:
        self.hears.update(0.02)
        message = self.hears["control/report"].message
        return (
            message
            if isinstance(message, Report)
            else Report(time_ns=0, process="control", state="starting")
        )

    def until(
        self, state: str, words: str = "", meanwhile: Callable[[], object] = lambda: None
    ) -> Report:
        end = time.monotonic() + PATIENCE_S
        while (report := self.report).state != state or words not in report.reason:
            assert time.monotonic() < end, report
            meanwhile()
        return report

    def until_running(self) -> None:
        """Also after a fault, where a busy machine kept a stop's thread from its turn for too
        long.
        """
        end = time.monotonic() + PATIENCE_S
        while (report := self.report).state != "running":
            assert time.monotonic() < end, report
            if report.state == "fault":
                move_again(self._run_dir)

    def until_reported(self, name: str, value: float) -> None:
        end = time.monotonic() + PATIENCE_S
        while (report := self.report).values.get(name) != value:
            assert time.monotonic() < end, report

    def commands(self) -> list[Command]:
        """Those that came since the last look."""
        self.hears.update(0.05)
        return [message for message in self.hears["command"].fresh if isinstance(message, Command)]


def chunk(now: int, hz: float) -> ActionChunk:
    """Small steps, from an image of now."""
    return ActionChunk(
        time_ns=now,
        episode=1,
        actions=((0.001,) + (0.0,) * 5 + (1.0,),) * 20,
        control_hz=hz,
        kinds=ControlConfig(LIMITS).kinds,
        valid_rows=20,
        produced_ns=now,
        frame_sequence=0,
        seed=(0,),
        instruction="go",
    )


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    with ExitStack() as stack:
        yield lambda **options: Stage(tmp_path, stack, **options)


def move_again(run_dir: Path) -> None:
    """Reset and arm, again where a busy machine kept a stop's thread from its turn in between."""
    end = time.monotonic() + PATIENCE_S
    while any(cli.main(["operator", word, "--run-dir", str(run_dir)]) for word in ("reset", "arm")):
        assert time.monotonic() < end


@pytest.mark.parametrize("same", [True, False], ids=["same sender", "another sender"])
@pytest.mark.parametrize("hz", [5, 50])
def test_a_press_among_many_that_are_none_counts(
    tmp_path: Path, stage, same: bool, hz: float
) -> None:
    desk = stage(hz=hz)
    presses = itertools.count()
    now = threading.Event()

    def say() -> EStop:
        """One press, when it is time, and never again."""
        return estop(pressed=same and now.is_set() and next(presses) == 0, source="one press")

    with repeating(tmp_path, ESTOP, say, 800):
        desk.until_running()
        if same:
            now.set()
        else:
            with Publisher(tmp_path, ESTOP) as other:
                other.send(estop(pressed=True, source="one press"))
        desk.until("fault", "pressed by one press")


def test_a_press_within_a_loop_without_a_pause_counts(tmp_path: Path, stage) -> None:
    desk = stage(hz=5)
    with Publisher(tmp_path, ESTOP) as button:
        button.send(estop())
        desk.until_running()
        for pressed in (False, True, False):
            end = time.monotonic() + (0 if pressed else 0.7)
            while True:
                button.send(estop(pressed=pressed, source="one press"))
                if time.monotonic() >= end:
                    break
        desk.until("fault", "pressed by one press")


BUTTON = """
import sys, time
from pathlib import Path
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.bus.messages import EStop
from trimvla.runtime.bus.topics import topic
with Publisher(Path(sys.argv[1]), topic("estop")) as button:
    print("up", flush=True)
    while True:
        button.send(EStop(time_ns=monotonic_ns(), pressed=False, source="wall"))
        time.sleep(0.05)
"""


def test_one_stop_of_two_that_dies_stops_the_robot_until_a_reset(tmp_path: Path, stage) -> None:
    desk = stage(interlock=InterlockConfig(estop=True))
    button = subprocess.Popen(
        [sys.executable, "-c", BUTTON, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with button, repeating(tmp_path, ESTOP, estop, 20):
        try:
            assert button.stdout is not None and button.stdout.readline() == "up\n"
            desk.until_reported("senders.estop", 2)
            desk.until_running()
        finally:
            button.kill()
        report = desk.until("fault", "the emergency stop is silent")
        assert "1 of 2 on 'estop' silent" in report.reason
        assert {command.kind for command in desk.commands()[-3:]} == {"hold"}
        desk.until_running()  # after a reset the one that is left is enough: a person says so


def test_a_stop_stays_in_force_when_others_try_to_take_its_place(tmp_path: Path, stage) -> None:
    desk = stage(interlock=InterlockConfig(estop=True))
    pressed = threading.Event()
    with repeating(tmp_path, ESTOP, lambda: estop(pressed=pressed.is_set(), source="wall"), 20):
        desk.until_running()
        with Publisher(tmp_path, ESTOP) as second, Publisher(tmp_path, ESTOP) as third:
            for other in (second, third):
                other.send(estop())
        pressed.set()
        desk.until("fault")
        assert cli.main(["operator", "reset", "--run-dir", str(tmp_path)]) == 1  # still pressed
        desk.until("fault", "pressed by wall")
        assert (tmp_path / "estop").is_socket()


def test_a_release_of_60_ms_between_two_ticks_counts(tmp_path: Path, stage) -> None:
    desk = stage(interlock=InterlockConfig(deadman=True), hz=5)
    let_go = [threading.Event(), threading.Event()]
    held = lambda: deadman(held=not (let_go[0].is_set() and not let_go[1].is_set()))  # noqa: E731
    with repeating(tmp_path, DEADMAN, held, 100):
        for _ in range(8):
            desk.until_running()
            before = desk.report.counters.get("entered_hold", 0)
            let_go[0].set()
            time.sleep(0.06)
            let_go[1].set()
            end = time.monotonic() + PATIENCE_S
            while desk.report.counters.get("entered_hold", 0) == before:
                assert time.monotonic() < end
            for event in let_go:
                event.clear()


def test_eight_senders_at_once_and_no_ninth(tmp_path: Path) -> None:
    with ExitStack() as stack:
        hears = stack.enter_context(Subscriber(tmp_path, [OPERATOR]))
        panels = [stack.enter_context(Publisher(tmp_path, OPERATOR)) for _ in range(SENDERS)]
        with pytest.raises(
            ConfigError, match=f"expected at most {SENDERS} publishers of 'operator'"
        ):
            Publisher(tmp_path, OPERATOR)
        for number in range(1, 4):
            for who, panel in enumerate(panels):
                panel.send(Operator(time_ns=monotonic_ns(), request="arm", id=10 * who + number))
        got: list[int] = []
        end = time.monotonic() + PATIENCE_S
        while len(got) < 3 * SENDERS:
            assert time.monotonic() < end, got
            hears.update(0.05)
            got += [
                message.id for message in hears["operator"].fresh if isinstance(message, Operator)
            ]
    assert [number for number in got if number < 10] == [1, 2, 3]  # in order, by sender
    assert sorted(got) == sorted(
        10 * who + number for who in range(SENDERS) for number in (1, 2, 3)
    )
    assert list(tmp_path.iterdir()) == []


ONE_WORD = """
import sys
from pathlib import Path
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.bus.messages import EStop, Operator
from trimvla.runtime.bus.topics import topic
with Publisher(Path(sys.argv[1]), topic(sys.argv[2])) as out:
    if sys.argv[2] == "estop":
        out.send(EStop(time_ns=monotonic_ns(), pressed=True))
    else:
        out.send(Operator(time_ns=monotonic_ns(), request="disarm"))
"""


@pytest.mark.parametrize(("name", "state"), [("operator", "idle"), ("estop", "fault")])
def test_what_is_sent_right_after_opening_reaches_control(
    tmp_path: Path, stage, name: str, state: str
) -> None:
    desk = stage()
    for _ in range(4):
        desk.until_running()
        subprocess.run([sys.executable, "-c", ONE_WORD, str(tmp_path), name], check=True)
        desk.until(state)
        move_again(tmp_path)


@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "loopback"])
def test_a_stop_on_another_host_has_one_sender_and_its_first_message_counts(
    tmp_path: Path, keyed: bool
) -> None:
    hosts = ("robot", "panel")
    ports = free_ports(2)
    places = {
        name: RemoteTopic(f"tcp://127.0.0.1:{port}", "panel" if keyed else "")
        for name, port in zip(("estop", "operator"), ports, strict=True)
    }
    for host in hosts:
        (tmp_path / host).mkdir(mode=0o700)
        curve.create(tmp_path / f"{host}-keys", host)
    for host, other in (hosts, reversed(hosts)):
        shutil.copy(tmp_path / f"{other}-keys" / f"{other}.key", tmp_path / f"{host}-keys")
    for host in hosts:
        install(Network(places, str(tmp_path / f"{host}-keys") if keyed else ""), tmp_path / host)
    with ExitStack() as stack:
        desk = Stage(tmp_path / "robot", stack)
        desk.until_running()
        with Publisher(tmp_path / "panel", ESTOP) as button:
            button.send(estop(pressed=True, source="far away"))
            with pytest.raises(ConfigError, match="expected no other publisher of 'estop'"):
                Publisher(tmp_path / "panel", ESTOP)
        desk.until("fault", "pressed by far away")
        with Publisher(tmp_path / "panel", OPERATOR) as panel:
            panel.send(Operator(time_ns=monotonic_ns(), request="reset"))
        desk.until("idle")


# The verb


def test_the_verb_ends_well_only_if_control_acted(
    tmp_path: Path, stage, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = stage()
    desk.until_running()

    def order(word: str) -> tuple[int, dict[str, Any]]:
        status = cli.main(["operator", word, "--run-dir", str(tmp_path), "--json"])
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    for word, state in {
        "disarm": "idle",
        "arm": "running",
        "estop": "fault",
        "reset": "idle",
    }.items():
        status, said = order(word)
        assert (status, said["ok"]) == (0, True)
        assert said["state"] == state or (word == "arm" and said["state"] in ("armed", "hold"))
        desk.until(state)
    # each word counts once
    assert desk.report.counters["operator_disarm"] == desk.report.counters["operator_arm"] == 1
    order("estop")
    status, said = order("arm")
    assert (
        status == 1
        and "control received 'arm' and is fault: the emergency stop is pressed by" in said["error"]
    )


def test_the_verb_says_so_if_control_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    words = ["operator", "disarm", "--run-dir", str(tmp_path), "--timeout", "0.5", "--json"]
    assert cli.main(words) == 1
    assert (
        "expected a report of control"
        in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    )
    with repeating(
        tmp_path,
        topic("control/report"),
        lambda: Report(time_ns=1, process="control", state="idle"),
        20,
    ):
        assert cli.main(words) == 1  # a control that reports and does not receive
        assert cli.main(["operator", "estop", *words[2:]]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "expected control to act on 'estop' within 0.5 s" in json.loads(said[-1])["error"]
    assert time.monotonic() - begun < PATIENCE_S
    assert cli.main(["operator", "disarm", "--run-dir", str(tmp_path / "absent"), "--json"]) == 1
    assert "expected an existing run directory" in capsys.readouterr().out


# Traffic that is no message


def test_corrupt_traffic_is_named_in_the_holds_reason_and_counted(tmp_path: Path, stage) -> None:
    desk = stage(interlock=InterlockConfig(estop=True))
    with repeating(tmp_path, ESTOP, estop, 20):
        desk.until_running()
    with zmq.Context() as context, context.socket(zmq.PUB) as liar:
        liar.setsockopt(zmq.LINGER, 0)
        liar.bind(endpoint(tmp_path, ESTOP))
        report = desk.until(
            "fault", "were refused", lambda: liar.send_multipart([b"estop", b"\xc1"])
        )
    assert "messages on 'estop' were refused: topic 'estop'" in report.reason
    assert report.counters["refused.estop"] > 0 and report.values["valid.estop"] == 0
    assert "estop" in report.problems
    assert report.values["hz.robot/state"] > 5 and report.values["valid.robot/state"] == 1
    assert desk.commands()[-1].kind == "hold"
