"""Every state against every event: in the table, and in the controller, where events come from real
inputs.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import pytest

from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    EStop,
    JointState,
    Operator,
    Task,
)
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
from trimvla.runtime.control.interlock import Interlock, InterlockConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.control.states import EVENTS, STATES, TRANSITIONS, Event, State, advance
from trimvla.runtime.errors import ConfigError

LIMITS = Limits((-0.05, -1.0, 0.0), (0.05, 1.0, 1.0), acceleration=(math.inf, 1.0, math.inf))
KINDS = ("delta", "velocity", "gripper")
CONFIG = ControlConfig(
    LIMITS,
    KINDS,
    hz=10,
    interlock=InterlockConfig("operator", estop=True, deadman=True, refused_s=0.25),
)
GOOD = (0.01, 0.3, 1.0)
BROKEN = (math.nan,) * 3
TICK = NS_PER_S // 10
PAIRS = list(itertools.product(STATES, EVENTS))


def expected(state: State, event: Event) -> State:
    """The rules as one would tell them, not as the table has them."""
    if event in ("estop", "failure"):
        return "fault"
    if (state == "fault") != (event == "reset"):
        return state
    if event in ("reset", "disarm", "end"):
        return "idle"
    if state == "idle":
        return "armed" if event == "arm" else "idle"
    stopped: State = "hold" if state == "running" else state
    changes: dict[Event, State] = {"act": "running", "release": stopped, "lose": stopped}
    return changes.get(event, state)


def test_the_table_is_complete() -> None:
    assert set(TRANSITIONS) == set(PAIRS) and set(TRANSITIONS.values()) <= set(STATES)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_state_and_every_event(state: State, event: Event) -> None:
    assert advance(state, event) == expected(state, event)


class Rig:
    """A controller whose world is well, unless a tick says otherwise."""

    def __init__(self, config: ControlConfig = CONFIG) -> None:
        self.controller = Controller(config)
        self.now = 10 * NS_PER_S
        self.sequence = 0
        self.task = Task(time_ns=self.now, episode=1, instruction="x", started_ns=self.now)
        self.commands: list[Command] = []

    def tick(self, *requests: Any, action: tuple[float, ...] = GOOD, **inputs: Any) -> State:
        """One tick; fields of Inputs that are not given are well. The policy wants `action`."""
        self.now += TICK
        self.sequence += 1
        well: dict[str, Any] = {
            "task": self.task,
            "robot": JointState(time_ns=self.now, position=(0.0, 0.0), gripper=1.0),
            "chunk": self.chunk(action),
            "estop": EStop(time_ns=self.now, pressed=False),
            "deadman": Deadman(time_ns=self.now, held=True),
            "requests": tuple(Operator(time_ns=self.now, request=request) for request in requests),
        }
        decision = self.controller.decide(self.now, Inputs(**{**well, **inputs}))
        self.reason = decision.reason
        self.command = decision.command
        return decision.state

    def chunk(self, action: tuple[float, ...]) -> ActionChunk:
        return ActionChunk(
            sequence=self.sequence,
            time_ns=self.now,
            episode=self.task.episode,
            actions=(action,),
            control_hz=10,
            kinds=KINDS,
            instruction=self.task.instruction,
            valid_rows=1,
            produced_ns=self.now,
            frame_sequence=self.sequence,
            seed=(0,),
        )

    def bring_to(self, state: State) -> None:
        """Through real inputs."""
        ways: dict[State, list[tuple[tuple[str, ...], dict[str, Any]]]] = {
            "idle": [((), {})],
            "armed": [(("arm",), {"chunk": None})],
            "running": [(("arm",), {})],
            "hold": [(("arm",), {}), ((), {"robot": None})],
            "fault": [
                (("arm",), {}),
                ((), {"estop": EStop(time_ns=self.now, pressed=True, source="wall")}),
            ],
        }
        self.tick(chunk=None)
        reached = [self.tick(*requests, **inputs) for requests, inputs in ways[state]]
        assert reached[-1] == state


def do(rig: Rig, event: Event) -> State:
    """Make the event happen, with nothing else to act on."""
    if event == "failure":  # not a number for 0.3 s
        for _ in range(3):
            rig.tick(action=BROKEN)
        return rig.tick(action=BROKEN)
    if event in ("reset", "arm", "disarm"):
        return rig.tick(event, robot=None)
    changes: dict[Event, dict[str, Any]] = {
        "estop": {"estop": EStop(time_ns=rig.now, pressed=True)},
        "end": {"task": msgspec.structs.replace(rig.task, active=False)},
        "release": {"deadman": Deadman(time_ns=rig.now, held=False)},
        "lose": {"robot": None},
        "act": {},
    }
    return rig.tick(**changes[event])


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_the_controller_follows_the_table(state: State, event: Event) -> None:
    rig = Rig()
    rig.bring_to(state)
    reached = do(rig, event)
    wanted = expected(state, event)
    if event in ("reset", "arm", "disarm") and wanted == "running":
        wanted = "hold"  # these ticks have no action, and a request does not keep the robot running
    if event == "failure" and state in ("idle", "fault"):
        wanted = state  # where nothing is judged nothing is refused
    assert reached == wanted
    if reached == "running":
        assert rig.command is not None and rig.command.kind == "action"
    else:
        assert rig.command is None or (rig.command.kind == "hold" and rig.command.action[0] == 0)


def test_a_fault_latches_until_it_is_reset_and_then_waits_to_be_armed() -> None:
    rig = Rig()
    rig.bring_to("fault")
    assert rig.tick() == "fault" and rig.reason == "the emergency stop is pressed by wall"
    assert rig.tick("arm") == "fault"
    assert rig.tick("reset", estop=EStop(time_ns=rig.now, pressed=True)) == "fault", (
        "the cause is still there"
    )
    assert rig.tick("reset") == "idle" and "reset" in rig.reason
    assert rig.tick() == "idle"
    assert rig.tick("arm") == "running"


def test_an_emergency_stop_that_must_be_heard_is_missed() -> None:
    rig = Rig()
    assert (
        rig.tick("arm", estop=None) == "idle"
        and rig.reason == "the emergency stop has not been received yet"
    )
    assert rig.tick("arm") == "running"
    assert rig.tick(estop=None) == "fault" and rig.reason == "the emergency stop is silent"


def test_one_that_need_not_be_heard_counts_when_it_is_pressed() -> None:
    rig = Rig(ControlConfig(LIMITS, KINDS, hz=10))
    assert rig.tick(estop=None, deadman=None) == "running"
    assert rig.tick(estop=EStop(time_ns=rig.now, pressed=True)) == "fault"


@pytest.mark.parametrize(
    ("deadman", "words"),
    [
        (lambda now: None, "silent"),
        (lambda now: Deadman(time_ns=now - NS_PER_S, held=True), "silent"),
        (lambda now: Deadman(time_ns=now, held=False), "released"),
    ],
)
def test_without_the_deadmans_switch_it_holds_and_goes_on_when_it_is_held(deadman, words) -> None:
    rig = Rig()
    rig.bring_to("running")
    assert rig.tick(deadman=deadman(rig.now)) == "hold" and words in rig.reason
    assert rig.tick() == "running"


def test_a_new_task_arms_itself_only_where_it_may() -> None:
    auto = ControlConfig(LIMITS, KINDS, hz=10)
    rig = Rig(auto)
    assert rig.tick() == "running"
    assert rig.tick("disarm") == "idle" and rig.tick() == "idle"
    assert rig.tick(task=None) == "idle" and rig.tick() == "idle", (
        "the task is from before the word of the operator"
    )
    rig.task = msgspec.structs.replace(rig.task, episode=2, started_ns=rig.now + 1)
    assert rig.tick() == "running"
    rig = Rig()
    rig.bring_to("running")
    rig.task = msgspec.structs.replace(rig.task, episode=2, started_ns=rig.now)
    assert rig.tick() == "idle" and rig.reason == "not armed for this task"


def test_a_velocity_is_ramped_down_even_when_the_task_is_over() -> None:
    rig = Rig()
    rig.bring_to("running")
    for _ in range(3):
        rig.tick()
    states = []
    velocities = []
    for _ in range(6):
        states.append(rig.tick(task=None))
        velocities.append(rig.command.action[1] if rig.command else None)
    assert velocities[:3] == pytest.approx([0.2, 0.1, 0.0], abs=1e-12)
    assert velocities[-1] is None and set(states) == {"idle"}


def test_the_last_word_does_not_ramp() -> None:
    rig = Rig()
    rig.bring_to("running")
    decision = rig.controller.hold(rig.now, "control stops")
    assert decision.command is not None and decision.command.action == (0.0, 0.0, 1.0)


def test_what_the_gate_refuses_for_too_long_is_a_fault() -> None:
    rig = Rig()
    rig.bring_to("running")
    states = [rig.tick(action=BROKEN) for _ in range(4)]
    assert states == ["hold", "hold", "hold", "fault"] and "not finite" in rig.reason


def test_a_fault_keeps_its_first_reason() -> None:
    interlock = Interlock()
    interlock.feed("failure", "first")
    interlock.feed("estop", "second")
    assert (interlock.state, interlock.reason) == ("fault", "first")


@pytest.mark.parametrize("fields", [{"arm": "maybe"}, {"deadman_s": 0.0}, {"refused_s": -1.0}])
def test_guards_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        InterlockConfig(**fields)
