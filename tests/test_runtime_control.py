"""Decisions tick by tick, which row is due, what may be acted on; then all processes over real
sockets.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np
import pytest
from tiny_bundle import write_bundle

from trimvla.launch.system.client import SystemClient
from trimvla.runtime.bundle.action_meaning import ActionMeaning
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    EStop,
    Frame,
    JointState,
    Operator,
    Report,
    Task,
)
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry, summarise
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.chunks.chunk_queue import ChunkQueue, Due, QueueConfig, row_at
from trimvla.runtime.chunks.ensemble import blend
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.control import process as control
from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
from trimvla.runtime.control.interlock import InterlockConfig
from trimvla.runtime.control.realtime import RealtimeConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import CameraError, ConfigError, ObservationError, StaleError
from trimvla.runtime.inference import process as policy_process
from trimvla.runtime.inference.observation import AgeBudget, join
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_loop import PolicyLoop

START = 10 * NS_PER_S
PERIOD = NS_PER_S // 5
Request = Literal["arm", "disarm", "reset"]
KINDS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
LIMITS = Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,))
CONFIG = ControlConfig(LIMITS, state_s=60.0)  # one ROBOT serves all moments
ROBOT = JointState(time_ns=START, position=(0.0, 0.0), gripper=1.0)
TASK = Task(time_ns=START, episode=1, instruction="pick up the red cube", started_ns=START)


def at(periods: float) -> int:
    return START + round(periods * PERIOD)


def chunk(observed: float = 0.5, rows: int = 4, **fields: Any) -> ActionChunk:
    """Row r moves by r millimetres and closes the gripper."""
    defaults: dict[str, Any] = {
        "sequence": round(observed * 10),
        "time_ns": at(observed),
        "episode": 1,
        "actions": tuple((r / 1000,) + (0.0,) * 6 for r in range(rows)),
        "control_hz": 5.0,
        "kinds": KINDS,
        "instruction": TASK.instruction,
        "valid_rows": rows,
        "produced_ns": at(observed),
        "frame_sequence": 0,
        "seed": (0,),
    }
    return ActionChunk(**{**defaults, **fields})


def told(**fields: Any) -> Inputs:
    return Inputs(**{"task": TASK, "robot": ROBOT, **fields})


def test_rows_belong_to_moments():
    observed = chunk(0.5)
    assert [row_at(observed, at(t)) for t in (0.6, 1.0, 1.49, 1.51, 2.0, 4.6)] == [0, 0, 0, 1, 1, 4]
    # a late tick looks at an image that is younger than its plan
    assert row_at(observed, at(0.0)) == 0
    assert row_at(observed, at(-2.0)) < 0
    assert row_at(observed, at(1.45), actuation_ns=PERIOD // 10) == 1


def test_late_chunks_start_further_down_and_expire():
    queue = ChunkQueue()
    assert queue.due(at(1)) == "no chunk yet"
    queue.push(chunk(0.5), at(3))
    due = queue.due(at(3))
    assert isinstance(due, Due) and due.row == 2 and due.action[0] == 0.002
    assert queue.due(at(5)) == "chunk 5 is not due: row 4 of 4 valid ones"
    queue.push(chunk(0.2), at(5))  # older than what is there
    assert isinstance(queue.due(at(4)), Due)


def test_chunks_from_the_future_do_not_block_those_of_the_present():
    queue = ChunkQueue()
    queue.push(chunk(1000.0), at(1))
    queue.push(chunk(0.5), at(1))
    assert isinstance(queue.due(at(1)), Due)


def test_an_ensemble_blends_what_each_chunk_says_of_this_moment():
    queue = ChunkQueue(QueueConfig(mode="ensemble", votes=2))
    first = chunk(0.5)
    second = chunk(1.5, actions=tuple((0.01 * r, 0.02) + (0.0,) * 5 for r in range(4)))
    queue.push(first, at(1))
    queue.push(second, at(2))
    due = queue.due(at(2))
    assert isinstance(due, Due) and (due.row, due.voters) == (0, 2)
    assert np.array_equal(due.action, blend(np.array([first.actions[1], second.actions[0]])))
    queue.push(chunk(2.5, valid_rows=1), at(3))
    assert isinstance(due := queue.due(at(4)), Due) and due.voters == 1 and due.chunk is second


def test_chunks_that_are_no_rectangle_are_refused():
    with pytest.raises(ValueError, match="'actions'"):
        chunk(actions=((0.0,), (0.0, 1.0)), valid_rows=2)
    with pytest.raises(msgspec.ValidationError, match="'actions'"):
        msgspec.convert({**msgspec.to_builtins(chunk()), "valid_rows": 9}, ActionChunk)


def test_an_episode_from_start_to_end():
    controller = Controller(CONFIG)
    assert controller.decide(at(0), Inputs()).state == "idle"
    waiting = controller.decide(at(0), told())
    assert (waiting.state, waiting.reason, waiting.command) == ("armed", "no chunk yet", None)
    first = controller.decide(at(1), told(chunk=chunk()))
    assert first.state == "running" and first.first_of_chunk and first.command is not None
    assert (first.command.captured_ns, first.command.row, first.command.kind) == (
        at(0.5),
        0,
        "action",
    )
    second = controller.decide(at(2), told(chunk=chunk()))
    assert (
        second.command is not None
        and second.command.action[0] == 0.001
        and not second.first_of_chunk
    )
    over = controller.decide(at(3), told(task=msgspec.structs.replace(TASK, active=False)))
    assert (over.state, over.command) == ("idle", None)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (told(robot=None, chunk=chunk(1.5)), "robot/state is silent"),
        (
            told(chunk=chunk(1.5, actions=((math.nan,) * 7,), valid_rows=1)),
            "refused by the gate: action: not finite",
        ),
        (
            told(chunk=chunk(1.5, actions=((math.inf,) * 7,), valid_rows=1)),
            "refused by the gate: action: not finite",
        ),
        (told(chunk=chunk(0.5)), "row 7 of 4 valid ones"),
        (told(chunk=chunk(7.5, episode=2)), "row 7 of 4 valid ones"),
        (told(chunk=chunk(7.5, instruction="open the drawer")), "row 7 of 4 valid ones"),
        (
            told(chunk=chunk(1.5, actions=((0.0,) * 6,), valid_rows=1, kinds=KINDS[1:])),
            "expected actions of [6 delta, gripper] at 5 Hz, got [5 delta, gripper] at 5 Hz",
        ),
        (
            told(chunk=chunk(1.5, kinds=("absolute",) * 6 + ("gripper",))),
            "expected actions of [6 delta, gripper] at 5 Hz, got [6 absolute, gripper] at 5 Hz",
        ),
        (
            told(chunk=chunk(1.5, control_hz=2.5)),
            "expected actions of [6 delta, gripper] at 5 Hz, got [6 delta, gripper] at 2.5 Hz",
        ),
        (
            told(chunk=chunk(1.5, kinds=())),
            "expected actions that name their kinds, [6 delta, gripper] at 5 Hz, got",
        ),
    ],
)
def test_without_an_action_to_trust_it_holds_and_keeps_its_grip(inputs, reason):
    controller = Controller(CONFIG)
    assert controller.decide(at(1), told(chunk=chunk())).state == "running"
    late = "row 7" in reason
    held = controller.decide(at(8 if late else 2), inputs)
    assert held.state == "hold" and reason in held.reason and held.command is not None
    assert held.command.action == (0.0,) * 7  # null deltas; the gripper was closed and stays so
    assert held.command.captured_ns is None and held.command.reason == held.reason
    assert controller.decide(at(9), told(chunk=chunk(8.5))).state == "running"


def test_a_new_episode_starts_without_the_chunks_of_the_last_one():
    controller = Controller(CONFIG)
    assert controller.decide(at(1), told(chunk=chunk())).state == "running"
    following = msgspec.structs.replace(TASK, episode=2, started_ns=at(1.5))
    assert controller.decide(at(2), told(task=following, chunk=chunk())).state == "armed"
    early = chunk(1.4, episode=2)  # an image from before the task
    assert controller.decide(at(2), told(task=following, chunk=early)).state == "armed"
    assert (
        controller.decide(at(2), told(task=following, chunk=chunk(1.6, episode=2))).state
        == "running"
    )


def test_the_gate_has_the_last_word():
    controller = Controller(CONFIG)
    decision = controller.decide(
        at(1), told(chunk=chunk(actions=((1.0,) + (0.0,) * 5 + (0.5,),), valid_rows=1))
    )
    assert decision.gated and decision.command is not None and decision.command.action[0] == 0.05
    assert decision.command.reason == "out of range in dimension 0"


def test_an_absolute_robot_starts_from_where_it_is():
    limits = Limits((-3.0, 0.0), (3.0, 1.0), (0.1, math.inf))
    controller = Controller(ControlConfig(limits, ("absolute", "gripper"), state_s=60.0))
    wanted = chunk(actions=((2.0, 1.0),), valid_rows=1, kinds=("absolute", "gripper"))
    lost = JointState(time_ns=0, position=(math.nan,), gripper=1.0)
    assert controller.decide(at(1), told(robot=lost, chunk=wanted)).command is None
    known = JointState(time_ns=0, position=(1.0,), gripper=1.0)
    first = controller.decide(at(1), told(robot=known, chunk=wanted))
    assert first.command is not None and first.command.action == pytest.approx((1.1, 1.0))
    held = controller.hold(at(2), "test")
    assert held.command is not None and held.command.action == first.command.action


@pytest.mark.parametrize(
    "make",
    [
        lambda: ControlConfig(LIMITS, hz=0),
        lambda: ControlConfig(Limits((0.0,), (1.0,))),
        lambda: ControlConfig(Limits((0.1,), (1.0,)), ("delta",)),
        lambda: QueueConfig(mode=cast("Any", "guess")),
        lambda: QueueConfig(votes=0),
        lambda: QueueConfig(max_age_s=0),
        lambda: ControlConfig(LIMITS, state_s=0),
        lambda: AgeBudget(frame_s=0),
        lambda: PolicyConfig(valid_rows=0),
        lambda: PolicyConfig(max_hz=0),
    ],
)
def test_configurations_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def seen(periods: float) -> Frame:
    return Frame("front", at(periods), np.zeros((4, 4, 3), np.uint8))


def test_an_observation_joins_what_is_fresh():
    observation = join(at(2), {"front": seen(1.5), "wrist": seen(1)}, TASK, ROBOT)
    assert observation.time_ns == at(1) and observation.task is TASK


@pytest.mark.parametrize(
    ("frame", "task", "state", "error", "words"),
    [
        (seen(1), None, ROBOT, ObservationError, "no active task"),
        (None, TASK, ROBOT, ObservationError, "nothing has come on 'front/color' yet"),
        (seen(1), TASK, None, ObservationError, "nothing has come on 'robot/state' yet"),
        (seen(-2), TASK, ROBOT, StaleError, "at most 500 ms of age for 'front/color', got 800 ms"),
        (seen(-0.1), TASK, ROBOT, StaleError, "from after the task's start, got one 20 ms before"),
        (seen(3), TASK, ROBOT, StaleError, "past time for 'front/color', got one 200 ms ahead"),
        (
            seen(1),
            TASK,
            msgspec.structs.replace(ROBOT, time_ns=1),
            StaleError,
            "of age for 'robot/state'",
        ),
    ],
)
def test_what_must_not_be_acted_on_is_refused_with_a_reason(frame, task, state, error, words):
    with pytest.raises(error, match=words):
        join(at(2), {"front": frame}, task, state, AgeBudget(state_s=0.5))


def test_percentiles_are_values_that_occurred():
    summary = summarise(range(1, 101))
    assert (summary.count, summary.p50, summary.p99, summary.max) == (100, 50, 99, 100)
    assert summarise([]).count == 0 and summarise([7.0]).p99 == 7.0


# All processes over real sockets


class Robot:
    """A robot and its operator: says where it is and what is asked, obeys, and remembers."""

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        self.task = Task(
            time_ns=0, episode=1, instruction="pick up the red cube", started_ns=monotonic_ns()
        )
        self.client = stack.enter_context(
            SystemClient(
                run_dir,
                sends=("task", "robot/state"),
                receives=["command"],
                processes=["policy", "control"],
            )
        )
        self.commands: list[Command] = []

    def live(self, seconds: float) -> None:
        """Speak at 20 Hz and obey for some time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = monotonic_ns()
            self.client.send("task", msgspec.structs.replace(self.task, time_ns=now))
            state = JointState(time_ns=now, position=(now % 997 * 1e-9,), gripper=1.0)
            self.client.send("robot/state", state)
            time.sleep(0.05)
            self.hear()

    def hear(self) -> None:
        self.client.receive()
        self.commands += [c for c in self.client["command"].fresh if isinstance(c, Command)]

    def live_until(self, kind: str, timeout_s: float) -> Command:
        """Live until the newest command is of this kind."""
        end = time.monotonic() + timeout_s
        while not self.commands or self.commands[-1].kind != kind:
            assert time.monotonic() < end, f"no command of kind {kind}"
            self.live(0.05)
        return self.commands[-1]

    def report(self, process: str) -> Report:
        """The newest report of a process."""
        return self.client.reports()[process]


def serve(run: Any, config: Any, run_dir: Path, leash: Connection) -> None:
    """Run a module until the other end of the leash is closed.

    Nothing is shared that a kill could leave locked.
    """
    stop = threading.Event()

    def wait_for_the_end() -> None:
        leash.poll(None)
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    run(config, run_dir, stop)


class Processes:
    """Real processes, one for each module's `run`."""

    def __init__(self, run_dir: Path) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._run_dir = run_dir
        self._leashes: list[Connection] = []
        self.running: dict[str, SpawnProcess] = {}

    def start(self, name: str, run: Any, config: Any) -> None:
        theirs, ours = self._spawn.Pipe(duplex=False)
        process = self._spawn.Process(
            target=serve, args=(run, config, self._run_dir, theirs), daemon=True
        )
        process.start()
        theirs.close()
        self._leashes.append(ours)
        self.running[name] = process

    def end(self) -> None:
        """Ask all to stop, and see that they do."""
        for leash in self._leashes:
            leash.close()
        for process in self.running.values():
            process.join(5)


@contextmanager
def all_processes(run_dir: Path) -> Iterator[Processes]:
    bundle = write_bundle(run_dir / "bundle", control_hz=10)
    processes = Processes(run_dir)
    processes.start(
        "camera", camera.run, camera.CameraConfig(kind="synthetic", width=32, height=24, hz=30)
    )
    config = PolicyConfig(bundle=str(bundle), valid_rows=3, max_hz=20)
    processes.start("policy", policy_process.run, config)
    processes.start("control", control.run, ControlConfig(LIMITS, hz=10))
    try:
        yield processes
    finally:
        processes.end()


def test_from_camera_to_command_through_real_processes(tmp_path):
    with ExitStack() as stack, all_processes(tmp_path) as processes:
        robot = Robot(tmp_path, stack)
        robot.live_until("action", 20)
        robot.live(1.5)
        commands = list(robot.commands)
        control_report = robot.report("control")
        policy_report = robot.report("policy")

        processes.running["camera"].kill()
        robot.live(0.3)
        killed = len(robot.commands)
        held = robot.live_until("hold", 5)
        executed = [c for c in robot.commands[killed:] if c.kind == "action"]

        processes.end()
        robot.hear()
        codes = {name: process.exitcode for name, process in processes.running.items()}

    actions = [c for c in commands if c.kind == "action"]
    assert len(actions) >= 8 and robot.client["command"].missed == 0
    for command in actions:
        assert all(
            low <= a <= high
            for low, a, high in zip(LIMITS.low, command.action, LIMITS.high, strict=True)
        )
        assert (
            command.captured_ns is not None
            and 0 < command.time_ns - command.captured_ns < 0.8 * NS_PER_S
        )
    assert (
        control_report.state == "running"
        and control_report.latencies["photon_to_action"].count >= 5
    )
    assert control_report.values["hz_achieved"] == pytest.approx(10, rel=0.2)
    assert (
        policy_report.counters["frames_used"] >= 10
        and policy_report.latencies["inference.total"].p50 > 0
    )
    assert "is not due" in held.reason and held.captured_ns is None
    assert len(executed) <= 5  # three rows of 200 ms at 10 Hz, less what had passed
    assert robot.commands[-1].kind == "hold" and robot.commands[-1].reason == "control stops"
    assert codes == {"camera": -signal.SIGKILL, "policy": 0, "control": 0}


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy.load(write_bundle(tmp_path / "bundle"))


@contextmanager
def policy_loop(
    run_dir: Path, policy: Policy, config: PolicyConfig
) -> Iterator[tuple[PolicyLoop, Telemetry]]:
    telemetry = Telemetry("policy")
    names = ["front/color", "task", "robot/state"]
    with (
        Subscriber(run_dir, [topic(n) for n in names]) as inputs,
        Publisher(run_dir, topic("chunk")) as chunks,
    ):
        yield (
            PolicyLoop(
                policy, inputs, chunks, telemetry, meaning=ActionMeaning(KINDS, 5.0), config=config
            ),
            telemetry,
        )


def step_with(
    loop: PolicyLoop, frames: Publisher, tasks: Publisher, task: Task, time_ns: int
) -> bool:
    """Send until the frame has come; whether a chunk was made of it."""
    for _ in range(100):
        tasks.send(msgspec.structs.replace(task, time_ns=monotonic_ns()))
        frames.send(Frame("front", time_ns, np.zeros((4, 4, 3), np.uint8)))
        time.sleep(0.005)
        if loop.step():
            return True
        if loop.seen_ns >= time_ns:
            return False
    return False


def test_pictures_are_passed_over_or_refused_with_a_reason(tmp_path, policy):
    # a busy machine is not what is tested
    config = PolicyConfig(max_hz=10, budget=AgeBudget(frame_s=10.0))
    with (
        policy_loop(tmp_path, policy, config) as (loop, telemetry),
        Publisher(tmp_path, topic("front/color")) as frames,
        Publisher(tmp_path, topic("task")) as tasks,
    ):
        now = monotonic_ns()
        task = Task(
            time_ns=now,
            episode=1,
            instruction="pick up the red cube",
            started_ns=now - 20 * NS_PER_S,
        )
        step = partial(step_with, loop, frames, tasks)
        for _ in range(60):  # until the sockets have met
            tasks.send(task)
            time.sleep(0.005)
        assert not step(task, now - 11 * NS_PER_S)
        assert telemetry.counters["frames_stale"] >= 1 and "10000 ms of age" in telemetry.reason
        assert step(task, now) and telemetry.counters["frames_used"] == 1
        # too soon after the last
        assert not step(task, now + NS_PER_S // 50) and loop.seen_ns == now
        now = monotonic_ns() + NS_PER_S // 10
        time.sleep(0.15)
        assert not step(msgspec.structs.replace(task, instruction=" "), now)
        assert telemetry.counters["refused"] == 1 and "instruction" in telemetry.reason
        assert telemetry.report().latencies["inference.total"].count == 1


def test_a_task_without_a_camera_is_a_clear_error(tmp_path, policy):
    with policy_loop(tmp_path, policy, PolicyConfig(camera_timeout_s=0.2)) as (loop, _):
        assert not loop.step()  # no task: a camera may take its time
        words = (
            "camera 'front': expected a first image on 'front/color' within 0.2 s of the task's"
            " start, got none"
        )
        with ExitStack() as stack, pytest.raises(CameraError, match=words):
            robot = Robot(tmp_path, stack)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                robot.live(0.05)
                loop.step()


def test_the_loop_keeps_time_until_told_to_stop(tmp_path):
    stop = threading.Event()
    process = threading.Thread(
        target=control.run, args=(ControlConfig(LIMITS, hz=50), tmp_path, stop)
    )
    with Subscriber(tmp_path, [topic("control/report")]) as inputs:
        process.start()
        assert inputs.wait_for("control/report", 5)
        time.sleep(0.5)
        stop.set()
        process.join(2)
        time.sleep(0.1)
        inputs.update()
        report = inputs["control/report"].message
    assert not process.is_alive()
    assert isinstance(report, Report) and report.state == "idle" and report.counters["ticks"] >= 15


class Desk:
    """Everything around the process `control`, with a policy that always has an action."""

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        names = ("task", "robot/state", "chunk", "estop", "deadman", "operator")
        self.client = stack.enter_context(
            SystemClient(run_dir, sends=names, receives=["command"], processes=["control"])
        )
        self.task = Task(time_ns=0, episode=1, instruction="go", started_ns=monotonic_ns())
        self.pressed = False
        self.held = True

    def speak(self) -> None:
        now = monotonic_ns()
        action = (0.001,) + (0.0,) * 6
        observed = chunk(
            time_ns=now,
            produced_ns=now,
            actions=(action,) * 50,
            valid_rows=50,
            control_hz=50.0,
            instruction=self.task.instruction,
        )
        for name, message in {
            "task": msgspec.structs.replace(self.task, time_ns=now),
            "robot/state": JointState(time_ns=now, position=(now % 997 * 1e-9,), gripper=1.0),
            "chunk": observed,
            "estop": EStop(time_ns=now, pressed=self.pressed, source="wall"),
            "deadman": Deadman(time_ns=now, held=self.held),
        }.items():
            self.client.send(name, message)

    def wait_for(self, state: str, words: str = "", request: Request | None = None) -> Report:
        """Speak until control is in this state for this reason; the request is repeated until
        then.
        """
        end = time.monotonic() + 30
        while time.monotonic() < end:
            self.speak()
            if request is not None:
                asked = Operator(time_ns=monotonic_ns(), request=request)
                self.client.send("operator", asked)
            self.client.receive(0.02)
            report = self.client.report("control")
            if report.state == state and words in report.reason:
                return report
        raise AssertionError(
            f"expected control to be in {state} {words}, got {self.client.states()}"
        )

    def newest(self) -> Command:
        message = self.client["command"].message
        assert isinstance(message, Command)
        return message


def test_stop_and_switch_reach_the_robot_through_real_sockets(tmp_path):
    interlock = InterlockConfig(deadman=True, deadman_s=2.0)
    config = ControlConfig(
        LIMITS, hz=50, state_s=5.0, interlock=interlock, realtime=RealtimeConfig(freeze_gc=True)
    )
    with ExitStack() as stack:
        desk = Desk(tmp_path, stack)
        stack.enter_context(controlling(config, tmp_path))
        assert desk.wait_for("running").values["realtime.gc.freeze"] == 1
        desk.held = False
        desk.wait_for("hold", "released")
        desk.held = True
        desk.wait_for("running")
        desk.pressed = True
        desk.wait_for("fault", "the emergency stop is pressed by wall")
        desk.pressed = False
        desk.client.receive(0.1)
        assert desk.newest().kind == "hold" and desk.newest().action[:6] == (0.0,) * 6
        desk.wait_for("idle", "reset", "reset")
        desk.wait_for("running", "", "arm")


@contextmanager
def controlling(config: ControlConfig, run_dir: Path) -> Iterator[None]:
    """The process `control` in a thread."""
    stop = threading.Event()
    process = threading.Thread(target=control.run, args=(config, run_dir, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(5)
        gc.unfreeze()
    assert not process.is_alive()
