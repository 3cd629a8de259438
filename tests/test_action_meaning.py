"""A chunk names what its numbers mean and what it was made for; control commands nothing else, from
start to wire.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from tests.tiny_bundle import KINDS, write_bundle
from trimvla.launch import cli
from trimvla.runtime.bundle.action_meaning import ActionMeaning, disagreement
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Frame,
    JointState,
    Operator,
    Report,
    Task,
)
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.chunks.ensemble import AdaptiveEnsemble
from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.control import process as control
from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
from trimvla.runtime.control.interlock import InterlockConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.scheduler import InferenceScheduler, SchedulerConfig
from trimvla.runtime.preprocess.observation import one_image
from trimvla.runtime.servers.sessions import Session
from trimvla.sim.actor import noise_shape
from trimvla.sim.robots import faulty_policy
from trimvla.sim.robots.faulty_policy import DummyPolicy, FaultyPolicyConfig

DELTAS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
TARGETS: tuple[ActionKind, ...] = ("absolute",) * 6 + ("gripper",)
LIMITS = Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,))
HZ = 20.0
STEP = (0.01,) + (0.0,) * 5 + (1.0,)
CUBE = "pick up the red cube"
DRAWER = "open the drawer"


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ((DELTAS, 5.0), (DELTAS, 5.0), True),
        ((DELTAS, 30.0), (DELTAS, 30.0 + 1e-6), True),
        ((DELTAS, 10.0), (DELTAS, 5.0), False),
        ((DELTAS, 5.0), (TARGETS, 5.0), False),
        ((TARGETS, 5.0), (DELTAS, 5.0), False),
        ((DELTAS, 5.0), (DELTAS[1:], 5.0), False),
        ((DELTAS, 5.0), ((), 5.0), False),
        ((TARGETS, 50.0), (TARGETS, 5.0), True),
        ((("velocity",), 50.0), (("velocity",), 5.0), True),
        ((("velocity", "delta"), 50.0), (("velocity", "delta"), 5.0), False),
    ],
)
def test_two_sides_agree_or_both_are_shown(expected: Any, got: Any, same: bool) -> None:
    problem = disagreement(ActionMeaning(*expected), ActionMeaning(*got))
    assert (problem == "") == same
    assert same or str(ActionMeaning(*expected)) in problem


def chunk(now: int, **fields: Any) -> ActionChunk:
    """Fifty rows that each move by a centimetre."""
    values: dict[str, Any] = {
        "time_ns": now,
        "episode": 1,
        "actions": (STEP,) * 50,
        "control_hz": HZ,
        "kinds": DELTAS,
        "valid_rows": 50,
        "produced_ns": now,
        "frame_sequence": 0,
        "seed": (0,),
        "instruction": CUBE,
    }
    return ActionChunk(**{**values, **fields})


def test_an_old_recordings_chunk_still_decodes_and_is_not_commanded() -> None:
    fields = msgspec.to_builtins(chunk(1))
    del fields["kinds"], fields["statistics_key"]
    assert msgspec.convert(fields, ActionChunk).kinds == ()
    with pytest.raises(msgspec.ValidationError, match="expected 7 entries for 'kinds', got 2"):
        msgspec.convert({**fields, "kinds": ["delta", "gripper"]}, ActionChunk)


# Before anything starts: the verbs


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of a verb that must not have started anything."""
    began = time.monotonic()
    assert cli.main([*words, "--json"]) == 1
    assert time.monotonic() - began < 30
    return json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


def system(tmp_path: Path, policy: dict[str, Any], control_section: dict[str, Any]) -> str:
    limits = {"low": [-0.05] * 6 + [0.0], "high": [0.05] * 6 + [1.0]}
    path = tmp_path / "system.msgpack"
    path.write_bytes(
        msgspec.msgpack.encode({"policy": policy, "control": {"limits": limits, **control_section}})
    )
    return str(path)


@pytest.mark.parametrize(
    ("made", "section", "words"),
    [
        (
            {},
            {"hz": 10.0},
            "expected actions of [6 delta, gripper] at 10 Hz, got [6 delta, gripper] at 5 Hz",
        ),
        (
            {"kinds": TARGETS},
            {},
            "expected actions of [6 delta, gripper] at 5 Hz, got [6 absolute, gripper] at 5 Hz",
        ),
        (
            {},
            {"kinds": list(TARGETS)},
            "expected actions of [6 absolute, gripper] at 5 Hz, got [6 delta, gripper]",
        ),
        (
            {},
            {"kinds": ["velocity"] * 6 + ["gripper"]},
            "expected actions of [6 velocity, gripper] at 5 Hz, got",
        ),
    ],
)
def test_run_refuses_another_meaning_before_anything_starts(
    made, section, words, tmp_path, capsys
) -> None:
    bundle = write_bundle(tmp_path / "tiny", **made)
    run_dir = tmp_path / "run"
    path = system(tmp_path, {"bundle": str(bundle)}, section)
    error = refused(
        capsys, "run", path, "--task", CUBE, "--seconds", "5", "--run-dir", str(run_dir)
    )
    assert words in error and str(bundle) in error
    assert not run_dir.exists()


def test_every_rung_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = write_bundle(tmp_path / "top")
    low = write_bundle(tmp_path / "low", control_hz=2.5)
    error = refused(
        capsys, "run", system(tmp_path, {"rungs": [str(top), str(low)]}, {}), "--seconds", "5"
    )
    assert "at 2.5 Hz" in error and str(low) in error and str(top) not in error


def test_demo_and_the_fault_table_refuse_it_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(write_bundle(tmp_path / "tiny", kinds=TARGETS))
    for words in (
        ("demo", bundle, "--video", str(tmp_path / "film.mp4")),
        ("faults", "--bundle", bundle),
    ):
        assert "got [6 absolute, gripper]" in refused(capsys, *words)
    assert "got [6 delta, gripper] at 5 Hz" in refused(capsys, "demo", "--control.hz", "10")
    assert not (tmp_path / "film.mp4").exists()


# While it runs: control over real sockets


class Desk:
    """Everything around the process `control`: a robot that obeys, a task, and chunks as a test
    wants them.
    """

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        names = ("task", "robot/state", "chunk", "operator")
        self._publish = {
            name: stack.enter_context(Publisher(run_dir, topic(name))) for name in names
        }
        self._inputs = stack.enter_context(
            Subscriber(run_dir, [topic("command"), topic("control/report")])
        )
        self.task = Task(time_ns=0, episode=1, instruction=CUBE, started_ns=monotonic_ns())
        self.fields: dict[str, Any] | None = {}
        self.position = np.zeros(6)
        self.shown: np.ndarray | None = None
        """What the joint state repeats, whatever the position is."""
        self.commands: list[Command] = []
        self.states: set[str] = set()

    def turn(self) -> Report | None:
        """Publish everything, obey what comes; the newest report."""
        now = monotonic_ns()
        self._publish["task"].send(msgspec.structs.replace(self.task, time_ns=now))
        shown = self.position if self.shown is None else self.shown
        state = JointState(time_ns=now, position=tuple(shown.tolist()), gripper=1.0)
        self._publish["robot/state"].send(state)
        if self.fields is not None:
            self._publish["chunk"].send(chunk(now, **self.fields))
        self._inputs.update(0.02)
        fresh = [
            message for message in self._inputs["command"].fresh if isinstance(message, Command)
        ]
        for command in fresh:
            self.position += np.array(command.action[:6])
        self.commands += fresh
        report = self._inputs["control/report"].message
        if isinstance(report, Report):
            self.states.add(report.state)
            return report
        return None

    def ask(self, request: Literal["arm", "disarm", "reset"]) -> None:
        self._publish["operator"].send(Operator(time_ns=monotonic_ns(), request=request))

    def until(self, done: Callable[[Report], bool]) -> Report:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            report = self.turn()
            if report is not None and done(report):
                return report
        raise AssertionError(f"not within 30 s: {self.turn()}")

    def until_state(self, state: str, words: str = "") -> Report:
        return self.until(lambda report: report.state == state and words in report.reason)

    def ticks(self, count: int) -> None:
        """So many ticks of control from now on."""
        target = self.until(lambda report: True).counters.get("ticks", 0) + count
        self.until(lambda report: report.counters.get("ticks", 0) >= target)


@contextmanager
def controlled(run_dir: Path, config: ControlConfig) -> Iterator[Desk]:
    """The process `control` in a thread, and its desk."""
    stop = threading.Event()
    process = threading.Thread(target=control.run, args=(config, run_dir, stop))
    with ExitStack() as stack:
        desk = Desk(run_dir, stack)
        process.start()
        try:
            yield desk
        finally:
            stop.set()
            process.join(5)
    assert not process.is_alive()


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"control_hz": 5.0},
        "expected actions of [6 delta, gripper] at 20 Hz, got [6 delta, gripper] at 5 Hz",
    ),
    (
        {"kinds": TARGETS},
        "expected actions of [6 delta, gripper] at 20 Hz, got [6 absolute, gripper] at 20 Hz",
    ),
    (
        {"kinds": ()},
        "expected actions that name their kinds, [6 delta, gripper] at 20 Hz, got none",
    ),
    ({"kinds": DELTAS[1:], "actions": (STEP[1:],) * 50}, "got [5 delta, gripper] at 20 Hz"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_control_is_never_armed_for_another_meaning(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with controlled(tmp_path, ControlConfig(LIMITS, hz=HZ, state_s=5.0)) as desk:
        desk.fields = fields
        desk.until_state("idle", words)
        desk.ticks(20)
        assert desk.commands == [] and "running" not in desk.states
        desk.fields = {}
        desk.task = msgspec.structs.replace(desk.task, episode=2, started_ns=monotonic_ns())
        desk.fields = {"episode": 2}
        desk.until_state("running")


@pytest.mark.parametrize(("fields", "words"), WRONG)
def test_another_meaning_while_it_runs_is_a_hold(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    interlock = InterlockConfig(refused_s=1.0)
    with controlled(
        tmp_path, ControlConfig(LIMITS, hz=HZ, state_s=5.0, interlock=interlock)
    ) as desk:
        desk.until_state("running")
        desk.fields = fields
        desk.until_state("hold", words)
        seen = len(desk.commands)
        desk.until_state("fault", words)
        assert {command.kind for command in desk.commands[seen:]} == {"hold"}
        desk.fields = {}
        desk.ticks(10)
        assert desk.commands[-1].kind == "hold", "a fault stays until a person resets it"


def test_the_old_sentences_chunk_is_dropped_at_once(tmp_path: Path) -> None:
    config = ControlConfig(LIMITS, hz=HZ, state_s=5.0)
    with controlled(tmp_path, config) as desk:
        desk.until_state("running")
        desk.fields = None
        desk.task = msgspec.structs.replace(desk.task, instruction=DRAWER)
        changed_ns = monotonic_ns()
        desk.until_state("hold", "no chunk yet")
        after = [command for command in desk.commands if command.time_ns > changed_ns]
        moved = [command for command in after if command.kind == "action"]
        assert len(moved) <= 2, "what was on its way when the instruction changed"
        desk.fields = {}  # the call that was under way: still for the old instruction
        seen = len(desk.commands)
        desk.ticks(20)
        assert {command.kind for command in desk.commands[seen:]} == {"hold"}
        desk.fields = {"instruction": DRAWER}
        desk.until_state("running")


def test_another_instruction_needs_another_word_of_the_operator(tmp_path: Path) -> None:
    config = ControlConfig(LIMITS, hz=HZ, state_s=5.0, interlock=InterlockConfig(arm="operator"))
    with controlled(tmp_path, config) as desk:
        desk.until_state("idle", "not armed for this task")
        desk.until(lambda report: desk.ask("arm") is None and report.state == "running")
        desk.task = msgspec.structs.replace(desk.task, instruction=DRAWER)
        desk.fields = {"instruction": DRAWER}
        desk.until_state("idle", "not armed for this task")
        seen = len(desk.commands)
        desk.ticks(10)
        assert all(command.kind == "hold" for command in desk.commands[seen:])
        desk.until(lambda report: desk.ask("arm") is None and report.state == "running")


@pytest.mark.parametrize("mode", ["latest", "ensemble", "blend"])
def test_no_mode_of_the_queue_mixes_sentences(mode: Any) -> None:
    from trimvla.runtime.chunks.chunk_queue import QueueConfig

    controller = Controller(ControlConfig(LIMITS, hz=HZ, queue=QueueConfig(mode=mode, votes=3)))
    now = 10 * NS_PER_S

    def decide(ticks: int, instruction: str, made: ActionChunk) -> tuple[str, float]:
        at = now + round(ticks * NS_PER_S / HZ)
        task = Task(time_ns=at, episode=1, instruction=instruction, started_ns=now)
        robot = JointState(time_ns=at, position=(0.0,) * 6, gripper=1.0)
        decision = controller.decide(at, Inputs(task=task, robot=robot, chunk=made))
        assert decision.command is not None
        return decision.state, decision.command.action[0]

    old = chunk(now)
    new = chunk(now + 1, instruction=DRAWER, actions=((-0.01, *STEP[1:]),) * 50)
    assert decide(1, CUBE, old) == ("running", 0.01)
    assert decide(2, DRAWER, old) == ("hold", 0.0)
    assert decide(3, DRAWER, new) == ("running", -0.01)


def test_no_thought_is_guided_by_another_sentence() -> None:
    scheduler = InferenceScheduler(
        {"only": DummyPolicy(0.0)}, SchedulerConfig(rtc=RtcConfig(enabled=True))
    )
    started = monotonic_ns()

    def guided(instruction: str) -> bool:
        frame = Frame("front", monotonic_ns(), np.zeros((4, 4, 3), np.uint8))
        task = Task(time_ns=started, episode=1, instruction=instruction, started_ns=started)
        thought = scheduler.run(
            task, one_image(frame.image, instruction), frame.time_ns, (0,), Telemetry("policy")
        )
        scheduler.published(chunk(frame.time_ns, instruction=instruction))
        return thought.about["guidance"] is not None

    assert [guided(sentence) for sentence in (CUBE, CUBE, DRAWER, DRAWER, CUBE)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_policy_with_faults_can_be_guided(tmp_path: Path) -> None:
    """Its process lives on under real-time chunking, and its chunks name what they mean and what
    guided them.
    """
    bundle = str(write_bundle(tmp_path / "tiny", guided=True))
    config = FaultyPolicyConfig(bundle=bundle, rtc=RtcConfig(enabled=True), max_hz=50.0)
    stop = threading.Event()
    made = []
    process = threading.Thread(target=faulty_policy.run, args=(config, tmp_path, stop))
    names = ("front/color", "task", "robot/state")
    with ExitStack() as stack:
        publish = {name: stack.enter_context(Publisher(tmp_path, topic(name))) for name in names}
        inputs = stack.enter_context(Subscriber(tmp_path, [topic("chunk")]))
        process.start()
        started = monotonic_ns()
        end = time.monotonic() + 60
        while time.monotonic() < end and not any(each.guidance for each in made):
            now = monotonic_ns()
            publish["task"].send(Task(time_ns=now, episode=1, instruction=CUBE, started_ns=started))
            image = np.random.default_rng(now).integers(0, 255, (8, 8, 3), np.uint8)
            publish["front/color"].send(Frame("front", now, image))
            inputs.update(0.05)
            made += [each for each in inputs["chunk"].fresh if isinstance(each, ActionChunk)]
        alive = process.is_alive()
        stop.set()
        process.join(5)
    assert alive and any(each.guidance for each in made)
    assert {(each.kinds, each.control_hz, each.statistics_key) for each in made} == {
        (KINDS, 5.0, "tiny")
    }


def test_a_servers_session_lets_no_chunk_of_another_sentence_vote() -> None:
    session = Session("client", AdaptiveEnsemble(4))
    first = np.full((16, 7), 1.0)
    second = np.full((16, 7), 3.0)
    assert session.vote(first, CUBE)[0] == 1.0
    assert 1.0 < session.vote(second, CUBE)[0] < 3.0
    assert session.vote(first, DRAWER)[0] == 1.0
    assert session.step == 3


def test_the_noise_has_the_shape_that_the_bundle_says(tmp_path: Path) -> None:
    policy = Policy.load(write_bundle(tmp_path / "tiny"))
    assert noise_shape(policy) == (16, 7)
    action = msgspec.structs.replace(policy.manifest.action, horizon=8, dim=14)
    policy.manifest = msgspec.structs.replace(policy.manifest, action=action)
    assert noise_shape(policy) == (8, 14)
