"""A joint state that repeats, lags or lies: the workspace is kept all the same, and an honest robot
is not held up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_action_meaning import controlled
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import ActionChunk, JointState, Operator, Task
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
from trimvla.runtime.control.dead_reckoning import FollowConfig, Reckoner
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import ConfigError

START = 10 * NS_PER_S
NOISE = 1e-3
DIM = 3
Measure = Callable[["World"], np.ndarray]
Plan = Callable[[float], np.ndarray]
HIGH: dict[ActionKind, float] = {"delta": 0.05, "velocity": 0.25, "absolute": 1.0}


@dataclass
class World:
    """A robot that obeys at once, as well as `gain` and its own limit `reach` allow; `measure` is
    its joint state.
    """

    kind: ActionKind
    hz: float
    measure: Measure
    workspace: float = np.inf
    gain: float = 1.0
    reach: float = np.inf
    follow: FollowConfig = field(default_factory=FollowConfig)

    def __post_init__(self) -> None:
        high = (HIGH[self.kind],) * DIM
        low = tuple(-value for value in high)
        border = None if np.isinf(self.workspace) else (self.workspace,) * DIM
        limits = Limits(
            low,
            high,
            max_change=(0.05,) * DIM if self.kind == "absolute" else None,
            workspace_low=None if border is None else tuple(-value for value in border),
            workspace_high=border,
        )
        self.kinds: tuple[ActionKind, ...] = (self.kind,) * DIM
        self.controller = Controller(
            ControlConfig(limits, self.kinds, self.hz, state_s=5.0, follow=self.follow)
        )
        self.task = Task(time_ns=START, episode=1, instruction="x", started_ns=START)
        self.now = START
        self.seconds = 0.0
        self.position = np.zeros(DIM)
        self.velocity = np.zeros(DIM)
        self.past = [self.position]
        self.farthest = 0.0
        self.states: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.rng = np.random.default_rng(0)

    def play(self, seconds: float, plan: Plan) -> World:
        """Let the policy want what the plan says [unit/s, or a target]."""
        for _ in range(round(seconds * self.hz)):
            self.tick(plan(self.seconds))
        return self

    def tick(self, wanted: np.ndarray, *requests: Any) -> None:
        """One control period."""
        action = tuple((wanted / self.hz if self.kind == "delta" else wanted).tolist())
        chunk = ActionChunk(
            time_ns=self.now,
            episode=1,
            actions=(action,),
            control_hz=self.hz,
            kinds=self.kinds,
            valid_rows=1,
            produced_ns=self.now,
            frame_sequence=0,
            seed=(),
            instruction="x",
        )
        state = JointState(
            time_ns=self.now, position=tuple(self.measure(self).tolist()), gripper=1.0
        )
        asked = tuple(Operator(time_ns=self.now, request=request) for request in requests)
        inputs = Inputs(task=self.task, robot=state, chunk=chunk, requests=asked)
        decision = self.controller.decide(self.now, inputs)
        self.states[decision.state] += 1
        self.reasons[decision.reason.split(":")[0]] += 1
        self._obey(None if decision.command is None else np.array(decision.command.action))
        self.now += round(NS_PER_S / self.hz)
        self.seconds += 1 / self.hz

    def _obey(self, action: np.ndarray | None) -> None:
        if action is not None and self.kind == "absolute":
            self.position = action
        elif action is not None and self.kind == "delta":
            self.position = self.position + self.gain * action
        elif action is not None:
            self.velocity = action
        if self.kind == "velocity":
            self.position = self.position + self.gain * self.velocity / self.hz
        self.position = np.clip(self.position, -self.reach, self.reach)
        self.past.append(self.position)
        self.farthest = max(self.farthest, float(abs(self.position).max()))

    @property
    def not_followed(self) -> int:
        """Ticks in which it did not move as the policy wanted because it does not follow."""
        return sum(count for reason, count in self.reasons.items() if "not follow" in reason)


def honest(world: World) -> np.ndarray:
    return world.position


def repeats(world: World) -> np.ndarray:
    return np.zeros(DIM)


def repeats_with_noise(world: World) -> np.ndarray:
    return world.rng.normal(0, NOISE, DIM).clip(-3 * NOISE, 3 * NOISE)


def one_joint_repeats(world: World) -> np.ndarray:
    return np.array([0.0, *world.position[1:]])


def repeats_later(world: World) -> np.ndarray:
    """From the middle of a motion on."""
    return world.past[min(len(world.past) - 1, round(0.8 * world.hz))]


def repeats_now_and_then(world: World) -> np.ndarray:
    """Stalls for two of three seconds, and catches up."""
    second = int(world.seconds)
    return world.past[min(len(world.past) - 1, round((second - second % 3) * world.hz))]


def lags(seconds: float) -> Measure:
    return lambda world: world.past[max(0, len(world.past) - 1 - round(seconds * world.hz))]


LIES: dict[str, Measure] = {
    "repeats": repeats,
    "repeats with noise": repeats_with_noise,
    "one joint repeats": one_joint_repeats,
    "repeats later": repeats_later,
    "repeats now and then": repeats_now_and_then,
    "lags by 0.3 s": lags(0.3),
    "lags by 2 s": lags(2.0),
}


def out(speed: float) -> Plan:
    """Always outwards."""
    return lambda seconds: np.full(DIM, speed)


def sway(speed: float) -> Plan:
    """To and fro, each dimension at its own pace, further than any workspace here."""
    return lambda seconds: speed * np.cos(seconds * np.array([0.7, 0.5, 0.9]))


@pytest.mark.parametrize("kind", ["delta", "velocity"])
@pytest.mark.parametrize("speed", [0.03, 0.05, 0.25])
@pytest.mark.parametrize("measure", LIES.values(), ids=LIES)
def test_the_workspace_is_kept_whatever_the_state_says(
    measure: Measure, speed: float, kind: Any
) -> None:
    for plan in (out(speed), sway(speed)):
        world = World(kind, 10.0, measure, workspace=0.1).play(20, plan)
        assert world.farthest <= 0.1 + 3 * NOISE + 1e-9, world.reasons
        assert world.farthest > 0.02, "it did something at all"


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(LIES)), st.integers(0, 10**6), st.sampled_from(["delta", "velocity"]))
def test_the_workspace_is_kept_whatever_is_wanted(lie: str, seed: int, kind: Any) -> None:
    steps = np.random.default_rng(seed).uniform(-0.25, 0.25, (40, DIM))
    world = World(kind, 10.0, LIES[lie], workspace=0.15).play(
        20, lambda seconds: steps[int(2 * seconds) % 40]
    )
    assert world.farthest <= 0.15 + 3 * NOISE + 1e-9


@pytest.mark.parametrize("kind", ["delta", "velocity"])
@pytest.mark.parametrize("measure", [repeats, repeats_with_noise])
def test_a_state_that_shows_nothing_is_a_hold_then_a_fault_until_a_person_resets_it(
    measure: Measure, kind: Any
) -> None:
    world = World(kind, 10.0, measure, workspace=0.1).play(4, out(0.1))
    assert (
        world.states["hold"] > 10 and world.reasons["the robot does not follow its commands"] > 10
    )
    world.play(4, out(0.1))
    assert world.states["fault"] > 0
    stood = world.position.copy()
    world.play(2, out(-0.1))
    assert np.array_equal(world.position, stood), "a fault lasts"
    world.measure = honest
    world.tick(np.zeros(DIM), "reset")
    world.tick(np.zeros(DIM), "arm")
    before = world.states["running"]
    world.play(0.5, out(-0.1))
    assert world.states["running"] > before + 3


@pytest.mark.parametrize("kind", ["delta", "velocity", "absolute"])
def test_without_a_workspace_a_repeating_state_is_a_hold_too(kind: Any) -> None:
    plan = out(0.2) if kind != "absolute" else lambda seconds: np.full(DIM, 0.2 * seconds)
    world = World(kind, 10.0, repeats).play(5, plan)
    fastest = 0.5 if kind != "velocity" else 0.25
    assert world.states["hold"] > 5, world.reasons
    assert world.farthest <= fastest * world.follow.lag_s + 0.05


def test_one_joint_that_does_not_follow_goes_no_further_than_its_bound() -> None:
    follow = FollowConfig(bound=(0.1,) * DIM)
    world = World("delta", 10.0, one_joint_repeats, follow=follow)
    world.play(20, lambda seconds: np.array([0.1, 0.05 * np.cos(seconds), 0.0]))
    assert world.farthest <= 0.1 + 1e-9 and world.states["hold"] == 0
    assert world.reasons["not followed in dimension 0"] > 100


HONEST: dict[str, dict[str, Any]] = {
    "exact": {},
    "moves four fifths of the way": {"gain": 0.8},
    "moves further than it is told": {"gain": 1.2},
    "state lags by 0.3 s": {"measure": lags(0.3)},
    "state lags by 0.8 s": {"measure": lags(0.8)},
    "noise": {"measure": lambda world: world.position + world.rng.normal(0, NOISE, DIM)},
    "clips at its own limits": {"reach": 0.12},
}


@pytest.mark.parametrize("kind", ["delta", "velocity"])
@pytest.mark.parametrize("fields", HONEST.values(), ids=HONEST)
def test_an_honest_robot_is_not_held_up(fields: dict[str, Any], kind: Any) -> None:
    world = World(kind, 10.0, **{"measure": honest, "workspace": 0.5, **fields}).play(
        60, sway(0.12)
    )
    assert world.states["hold"] == world.states["fault"] == 0, world.reasons
    if "reach" not in fields:
        assert world.not_followed == 0, world.reasons


def test_a_robot_that_was_blocked_goes_on_when_it_is_led_back() -> None:
    world = World("delta", 10.0, honest, workspace=0.5, reach=0.05)
    world.play(4, lambda seconds: np.array([0.2, 0.0, 0.0]))
    assert world.states["hold"] > 0, "it was pushed on, and nothing moved at all"
    before = world.states["hold"]
    world.play(1, lambda seconds: np.array([-0.1, 0.0, 0.0]))
    assert world.states["hold"] == before and world.position[0] < 0


def test_a_robot_that_is_moved_by_hand_is_believed() -> None:
    world = World("delta", 10.0, honest, workspace=0.5).play(2, sway(0.1))
    world.position = np.array([-0.4, 0.4, 0.4])
    world.play(20, sway(0.1))
    assert world.states["hold"] == 0 and world.not_followed == 0
    assert world.farthest <= 0.5 + 1e-9


def test_a_gripper_alone_is_no_motion() -> None:
    reckoner = Reckoner(("gripper",), Limits((0.0,), (1.0,)), 10.0, FollowConfig(lag_s=0.1))
    for tick in range(100):
        reckoner.measure(
            START + tick * NS_PER_S // 10, JointState(time_ns=0, position=(0.0,), gripper=1.0)
        )
        wanted = np.array([float(tick % 2)])
        assert reckoner.judge(wanted, 1 - wanted) == ""
        reckoner.command(wanted)


@pytest.mark.parametrize("fields", [{"lag_s": 0.0}, {"bound": (0.0,) * 7}, {"bound": (1.0,)}])
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ControlConfig(Limits((-1.0,) * 7, (1.0,) * 7), follow=FollowConfig(**fields))


# Holds


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["delta", "velocity", "absolute", "gripper"]), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["robot", "estop", "task", "chunk", "stop"]),
)
def test_no_hold_does_more_than_an_action_may(
    kinds: list[ActionKind], seed: int, lost: str
) -> None:
    """Whatever the limits and the last command: no change beyond `max_change` or the acceleration,
    targets stay.
    """
    rng = np.random.default_rng(seed)
    hz = 10.0
    count = len(kinds)
    high = rng.uniform(0.1, 2.0, count)
    change = rng.uniform(0.01, 1.0, count)
    faster = rng.uniform(0.1, 20.0, count)
    limits = Limits(
        tuple(-high),
        tuple(high),
        max_change=tuple(change),
        velocity=tuple(high * hz),
        acceleration=tuple(faster),
    )
    controller = Controller(ControlConfig(limits, tuple(kinds), hz, state_s=1e6))
    task = Task(time_ns=START, episode=1, instruction="x", started_ns=START)
    robot = JointState(time_ns=START, position=tuple(rng.uniform(-0.1, 0.1, count)), gripper=0.0)
    robot = replace_position(robot, count - kinds.count("gripper"))
    last: np.ndarray | None = None
    for tick in range(1, 30):
        now = START + tick * NS_PER_S // 10
        chunk = ActionChunk(
            time_ns=now,
            episode=1,
            actions=(tuple(rng.uniform(-2, 2, count)),),
            control_hz=hz,
            kinds=tuple(kinds),
            valid_rows=1,
            produced_ns=now,
            frame_sequence=0,
            seed=(),
            instruction="x",
        )
        inputs = Inputs(task=task, robot=robot, chunk=chunk)
        if tick > 12:
            gone = {"robot": None, "task": None, "chunk": None}
            inputs = replace(inputs, **({lost: None} if lost in gone else {}))
        decision = (
            controller.brake(now, "x")
            if tick > 12 and lost == "stop"
            else controller.decide(now, inputs)
        )
        command = decision.command
        if command is None or command.kind == "action" or last is None:
            last = last if command is None else np.array(command.action)
            continue
        action = np.array(command.action)
        for d, kind in enumerate(kinds):
            if kind == "delta":
                assert action[d] == 0.0, "no motion at all"
            elif kind == "velocity":
                assert abs(action[d] - last[d]) <= min(change[d], faster[d] / hz) + 1e-12
                assert abs(action[d]) <= abs(last[d])
            else:
                assert action[d] == last[d]
        last = action


def replace_position(robot: JointState, count: int) -> JointState:
    return JointState(time_ns=robot.time_ns, position=robot.position[:count], gripper=robot.gripper)


# Over real sockets


def test_a_repeating_state_stops_the_robot_through_real_sockets(tmp_path: Path) -> None:
    border = (0.1,) * 6 + (np.inf,)
    limits = Limits(
        (-0.05,) * 6 + (0.0,),
        (0.05,) * 6 + (1.0,),
        workspace_low=tuple(-value for value in border),
        workspace_high=border,
    )
    config = ControlConfig(limits, hz=20.0, state_s=5.0, follow=FollowConfig(lag_s=0.5))
    with controlled(tmp_path, config) as desk:
        desk.shown = np.zeros(6)
        desk.until_state("hold", "the robot does not follow its commands")
        desk.until_state("fault", "the robot does not follow its commands")
        assert abs(desk.position).max() <= 0.1 + 1e-9
        assert len(desk.commands) > 50
