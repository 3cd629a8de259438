"""The gate and the state machine over generated inputs: what must hold whatever comes.

The gate is checked in batches through the functions that `check` is made of, and `check` itself
against them. The controller is driven tick by tick in closed loop with a robot that does as it is
told, while policy, cameras, robot, operator, emergency stop and deadman's switch do anything. The
checks use their own arithmetic, not the gate's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Deadman,
    EStop,
    Health,
    JointState,
    Operator,
    Refusal,
    Task,
)
from trimvla.runtime.chunks.chunk_queue import QueueConfig
from trimvla.runtime.clock import NS_PER_S, to_ns
from trimvla.runtime.control.controller import ControlConfig, Controller, Decision, Inputs
from trimvla.runtime.control.interlock import InterlockConfig
from trimvla.runtime.control.safety import Limits, Motion, check, nest, window

INF = math.inf
NAN = math.nan
ROWS = 150_000  # actions judged in batches, for each kind of robot
# ticks in closed loop, for each kind of robot
TICKS = 26_000 if os.environ.get("CI") == "true" else 8_000
HZ = 10.0
TICK = to_ns(1 / HZ)
SLACK = 1e-9

ROBOTS: dict[str, tuple[tuple[ActionKind, ...], Limits]] = {
    "delta": (
        ("delta", "delta", "gripper"),
        Limits(
            (-0.05, -0.4, 0.0),
            (0.05, 0.4, 1.0),
            max_change=(INF, 0.2, INF),
            velocity=(0.4, INF, INF),
            acceleration=(2.0, INF, INF),
            workspace_low=(-0.3, -INF, -INF),
            workspace_high=(0.3, INF, INF),
        ),
    ),
    "velocity": (
        ("velocity", "velocity", "gripper"),
        Limits(
            (-1.0, -2.0, 0.0),
            (1.0, 2.0, 1.0),
            velocity=(0.8, INF, INF),
            acceleration=(1.5, 4.0, INF),
            workspace_low=(-0.5, -INF, -INF),
            workspace_high=(0.5, INF, INF),
        ),
    ),
    "absolute": (
        ("absolute", "absolute", "gripper"),
        Limits(
            (-3.0, -2.0, 0.0),
            (3.0, 2.0, 1.0),
            max_change=(INF, 0.1, INF),
            velocity=(1.5, INF, INF),
            acceleration=(5.0, INF, INF),
            workspace_low=(-2.0, -INF, -INF),
            workspace_high=(2.0, INF, INF),
        ),
    ),
    "mixed": (
        ("delta", "velocity", "absolute", "gripper"),
        Limits((-0.05, -1.0, -2.0, 0.0), (0.05, 1.0, 2.0, 1.0), acceleration=(INF, 2.0, INF, INF)),
    ),
}
per_robot = pytest.mark.parametrize("name", ROBOTS)


# The gate, in batches


@dataclass
class Batch:
    """Actions of all sizes, after commands that the gate could have let through."""

    kinds: tuple[ActionKind, ...]
    limits: Limits
    rng: np.random.Generator
    rows: int = ROWS

    def __post_init__(self) -> None:
        shape = (self.rows, len(self.kinds))
        low = np.array(self.limits.low)
        high = np.array(self.limits.high)
        size = 10.0 ** self.rng.uniform(-6, 300, shape) * (self.rng.random(shape) < 0.1)
        self.wanted = (
            self.rng.uniform(1.5 * low - 0.1, 1.5 * high + 0.1, shape)
            + self.rng.choice([-1, 1], shape) * size
        )
        self.previous = self.rng.uniform(low, high, shape)
        top = np.where(np.isfinite(self.limits.row("velocity")), self.limits.row("velocity"), 1.0)
        self.velocity = self.rng.uniform(-top, top, shape)
        self.position = self.rng.uniform(-1.0, 1.0, shape) * np.maximum(abs(low), abs(high))
        self.motion = Motion(self.kinds, HZ, self.velocity, self.position)

    def judge(self, wanted: np.ndarray) -> np.ndarray:
        low, high = nest(window(self.limits, self.previous, self.motion))
        return np.minimum(np.maximum(wanted, low), high)


def speed_of(kind: ActionKind, action: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """What an action means [unit/s], told anew."""
    if kind == "velocity":
        return action
    return action * HZ if kind == "delta" else (action - previous) * HZ


@per_robot
def test_no_action_passes_beyond_a_limit(name: str) -> None:
    kinds, limits = ROBOTS[name]
    batch = Batch(kinds, limits, np.random.default_rng(1))
    action = batch.judge(batch.wanted)
    assert np.isfinite(action).all()
    assert (action >= limits.low).all() and (action <= limits.high).all()
    for d, kind in enumerate(kinds):
        v = speed_of(kind, action[:, d], batch.previous[:, d])
        assert (abs(v) <= limits.row("velocity")[d] + SLACK).all()
        here = batch.previous[:, d] if kind in ("absolute", "gripper") else batch.position[:, d]
        there = here + v / HZ
        assert (there <= np.maximum(limits.row("workspace_high")[d], here) + SLACK).all()
        assert (there >= np.minimum(limits.row("workspace_low")[d], here) - SLACK).all()
    assert np.array_equal(batch.judge(action), action), "what passed once passes unchanged"


@per_robot
def test_a_limit_gives_way_only_to_those_before_it(name: str) -> None:
    kinds, limits = ROBOTS[name]
    batch = Batch(kinds, limits, np.random.default_rng(2))
    action = batch.judge(batch.wanted)
    bounds = window(limits, batch.previous, batch.motion)
    for i, bound in enumerate(bounds):
        low, high = nest(bounds[: i + 1])
        broken = (action < bound.low - SLACK) | (action > bound.high + SLACK)
        if i:
            before_low, before_high = nest(bounds[:i])
            assert (broken <= ((bound.low > before_high) | (bound.high < before_low))).all()
            assert ((low >= before_low) & (high <= before_high) & (low <= high)).all()
        else:
            assert not broken.any()


@per_robot
def test_the_gate_is_what_the_batches_are(name: str) -> None:
    kinds, limits = ROBOTS[name]
    batch = Batch(kinds, limits, np.random.default_rng(3), rows=1500)
    expected = batch.judge(batch.wanted)
    for i in range(batch.rows):
        motion = Motion(kinds, HZ, batch.velocity[i], batch.position[i])
        verdict = check(batch.wanted[i], limits, batch.previous[i], motion)
        assert verdict.action is not None and np.array_equal(verdict.action, expected[i])
        assert bool(verdict.reasons) == (not np.array_equal(expected[i], batch.wanted[i]))


# The controller, in closed loop


class World:
    """A robot that does as it is told, and everything around it, which does anything."""

    def __init__(self, kinds: tuple[ActionKind, ...], limits: Limits, seed: int) -> None:
        self.kinds = kinds
        self.limits = limits
        self.rng = np.random.default_rng(seed)
        self.now = 10 * NS_PER_S
        self.arm = [d for d, kind in enumerate(kinds) if kind != "gripper"]
        self.position = np.zeros(len(kinds))
        self.velocity = np.zeros(len(kinds))
        self.task = Task(time_ns=self.now, episode=0, instruction="x", started_ns=self.now)
        self.chunk: ActionChunk | None = None
        self.refusal: Refusal | None = None
        self.inputs = Inputs()
        self._dice: Iterator[float] = iter(())

    def chance(self, probability: float) -> bool:
        """Drawn in blocks, which is much faster than one by one."""
        value = next(self._dice, None)
        if value is None:
            self._dice = iter(self.rng.random(50_000).tolist())
            value = next(self._dice)
        return value < probability

    def tick(self) -> Inputs:
        """Everything that control hears this time."""
        self.now += TICK
        if self.chance(0.01):
            started = self.now - (TICK if self.chance(0.5) else 0)
            self.task = Task(
                time_ns=self.now, episode=self.task.episode + 1, instruction="x", started_ns=started
            )
        if self.chance(0.5):
            self.chunk = self.make_chunk()
        if self.chance(0.03):
            self.refusal = self.make_refusal()
        self.inputs = Inputs(
            task=None if self.chance(0.01) else self.task,
            robot=None if self.chance(0.02) else self.say(),
            chunk=self.chunk,
            refusal=self.refusal,
            estop=None
            if self.chance(0.002)
            else EStop(time_ns=self.now, pressed=self.chance(0.005)),
            deadman=None if self.chance(0.01) else self.switch(),
            health=None if self.chance(0.1) else Health(time_ns=self.now, ok=not self.chance(0.03)),
            requests=self.ask(),
        )
        return self.inputs

    def make_chunk(self) -> ActionChunk:
        """Good, far too large, or not even numbers; fresh, stale, from the future, for another
        task.
        """
        scale = 10.0 ** self.rng.integers(-1, 4) if self.chance(0.5) else 1.0
        actions = self.rng.normal(0, scale, (4, len(self.kinds)))
        if self.chance(0.1):
            actions[self.rng.integers(4), self.rng.integers(len(self.kinds))] = self.rng.choice(
                [NAN, INF, -INF, 1e308]
            )
        age = self.rng.integers(-3, 12) * TICK if self.chance(0.2) else TICK // 2
        return ActionChunk(
            time_ns=self.now - int(age),
            episode=self.task.episode - self.chance(0.03),
            actions=tuple(map(tuple, actions.tolist())),
            control_hz=HZ,
            kinds=self.kinds,
            instruction=self.task.instruction,
            valid_rows=4,
            produced_ns=self.now,
            frame_sequence=0,
            seed=(0,),
        )

    def make_refusal(self) -> Refusal:
        frozen = self.chance(0.5)
        since = self.now - int(self.rng.integers(1, 8)) * TICK
        kind = "frozen" if frozen else "stale"
        return Refusal(
            time_ns=self.now, episode=0, kind=kind, reason="x", since_ns=since if frozen else None
        )

    def say(self) -> JointState:
        """Where the robot is; sometimes long ago, ahead of time, or not a number."""
        position = [NAN if self.chance(0.02) else float(self.position[d]) for d in self.arm]
        late = int(self.rng.integers(-4, 20)) * TICK if self.chance(0.03) else 0
        return JointState(
            time_ns=self.now - late,
            position=tuple(position),
            gripper=NAN if self.chance(0.01) else 1.0,
        )

    def switch(self) -> Deadman:
        return Deadman(
            time_ns=self.now - (NS_PER_S if self.chance(0.01) else 0), held=not self.chance(0.03)
        )

    def ask(self) -> tuple[Operator, ...]:
        words = [("arm", 0.1), ("disarm", 0.005), ("reset", 0.1)]
        return tuple(Operator(time_ns=self.now, request=w) for w, p in words if self.chance(p))  # type: ignore[arg-type]

    def obey(self, action: np.ndarray | None) -> None:
        """Move for one period; without a command a velocity goes on, and nothing else does."""
        for d, kind in enumerate(self.kinds):
            if kind == "velocity":
                self.velocity[d] = self.velocity[d] if action is None else action[d]
                self.position[d] += self.velocity[d] / HZ
            elif action is not None:
                self.position[d] = self.position[d] + action[d] if kind == "delta" else action[d]


@dataclass
class Judge:
    """Remembers what it needs to know whether a decision was allowed."""

    world: World
    config: ControlConfig
    latched: bool = False
    heard: bool = False
    last: np.ndarray | None = None
    speeds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    withdrawn: list[tuple[int, int]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def look(self, decision: Decision) -> np.ndarray | None:
        """Assert everything that must hold; the action that was sent."""
        inputs = self.world.inputs
        command = decision.command
        self._remember(inputs)
        key = f"{decision.state}{'' if command is None else ' ' + command.kind}"
        self.seen[key] = self.seen.get(key, 0) + 1
        assert not self.latched or decision.state == "fault"
        if command is None:
            assert decision.state != "running"
            self.last = None if decision.state in ("idle", "armed") else self.last
            return None
        action = np.array(command.action)
        assert np.isfinite(action).all()
        assert (action >= self.world.limits.low).all() and (action <= self.world.limits.high).all()
        assert (command.kind == "action") == (decision.state == "running")
        if command.kind == "action":
            assert command.captured_ns is not None
            self._fresh(inputs, command.captured_ns)
        else:
            self._still(action)
        self.last = action
        return action

    def _remember(self, inputs: Inputs) -> None:
        """The latch, told anew: a reset opens it, unless the cause is still there."""
        if any(message.request == "reset" for message in inputs.requests):
            self.latched = False
        if inputs.estop is not None and inputs.estop.pressed:
            self.latched = True
        if self.config.interlock.estop and self.heard and inputs.estop is None:
            self.latched = True
        self.heard |= inputs.estop is not None
        if inputs.refusal is not None and inputs.refusal.since_ns is not None:
            self.withdrawn = [(inputs.refusal.since_ns, inputs.refusal.time_ns)]

    def _fresh(self, inputs: Inputs, captured_ns: int) -> None:
        """An action needs all of this at the moment at which it is sent."""
        now = self.world.now
        config = self.config
        assert inputs.task is not None and captured_ns >= inputs.task.started_ns
        assert now - captured_ns <= to_ns(config.queue.max_age_s) and captured_ns <= now + TICK
        assert not any(start < captured_ns <= end for start, end in self.withdrawn)
        assert inputs.robot is not None and now - inputs.robot.time_ns <= to_ns(config.state_s)
        assert inputs.health is None or inputs.health.ok
        if config.interlock.deadman:
            assert inputs.deadman is not None and inputs.deadman.held
            assert now - inputs.deadman.time_ns <= to_ns(config.interlock.deadman_s)

    def _still(self, action: np.ndarray) -> None:
        """A hold starts nothing: deltas are null, targets stay, velocities only fall."""
        assert self.last is not None
        for d, kind in enumerate(self.world.kinds):
            if kind == "delta":
                assert action[d] == 0
            elif kind == "velocity":
                assert abs(action[d]) <= abs(self.last[d]) and action[d] * self.last[d] >= 0
                ramp = self.world.limits.row("acceleration")[d] / HZ
                assert abs(action[d] - self.last[d]) <= ramp + SLACK
            else:
                assert action[d] == self.last[d]


@per_robot
# as intended
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("mode", ["latest", "ensemble"])
def test_nothing_that_may_come_makes_the_controller_unsafe(name: str, mode: Any) -> None:
    kinds, limits = ROBOTS[name]
    interlock = InterlockConfig(
        "auto" if mode == "latest" else "operator", estop=True, deadman=True, refused_s=0.5
    )
    config = ControlConfig(
        limits,
        kinds,
        HZ,
        queue=QueueConfig(mode=mode, max_age_s=0.25),
        interlock=interlock,
        state_s=0.5,
    )
    world = World(kinds, limits, seed=len(name) + 100 * len(mode))
    controller = Controller(config)
    judge = Judge(world, config)
    low = limits.row("workspace_low")
    high = limits.row("workspace_high")
    for _ in range(TICKS // 2):
        inputs = world.tick()
        world.obey(judge.look(controller.decide(world.now, inputs)))
        assert (world.position[world.arm] >= low[world.arm] - SLACK).all()
        assert (world.position[world.arm] <= high[world.arm] + SLACK).all()
    assert judge.seen["running action"] > TICKS // 50, "the robot did something at all"
    assert {"idle", "armed", "hold hold", "fault hold"} <= set(judge.seen), judge.seen
