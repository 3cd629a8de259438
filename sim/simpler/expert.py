"""The scripted expert for SimplerEnv's WidowX tasks: from privileged state to the next action,
without memory.

What it does depends only on what a picture shows: the arm follows its commands late (about half of
the way a step), and a command is not seen; so the expert steers by where the tool is, not by where
it was sent. `chunk` plays it forward in a kinematic model of the robot. Knows poses and heights;
knows nothing of physics, pictures or language.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

# the most a step commands [m], [rad]
SPEED = 0.04
TURN = 0.35
GAIN = 0.35  # share of the error that a step commands: with the arm's lag, little overshoot
FOLLOW = 0.5  # share of the way to the commanded pose that the arm goes in a step
# height above the grasp while not aligned [m], metres of height per metre of error beyond
HOVER = 0.05
SLOPE = 2.0
# errors that count as there: horizontal, vertical [m], yaw [rad]
ALIGNED = 0.006
LEVEL = 0.010
SQUARE = 0.20
IN_HAND = 0.030  # object this near to closed fingers is held [m]
REST = 0.10  # how far the tool rises above a finished job [m]
OPEN = 1.0
CLOSED = 0.0
# share of the period by which a turn to the negative side may be the longer one: a quarter turn, by
# which half of the official carrots and spoons lie, is always made to the same side
LEAN = 0.11
OPENED = 0.8  # from this opening on the gripper is open


@dataclass(frozen=True)
class Job:
    """What differs between the tasks; heights [m] are of the object's centre."""

    half: float
    """Half of the width that the fingers take [m]."""
    yaw_period: float
    """A grasp looks the same after this turn [rad]."""
    place: float
    """Above the target's centre, where the object is let go."""
    carry: float
    """Above the target's centre, while it travels."""
    radius: float
    """How far from the target's centre it may be let go [m]."""
    low: float
    """The tool's lowest height in the world."""


@dataclass(frozen=True)
class State:
    """Privileged state in the world's frame: positions [m], yaw of the fingers [rad], `opening`
    0..1.
    """

    tool: tuple[float, float, float]
    command: tuple[float, float, float]
    yaw: float
    yaw_command: float
    opening: float
    thing: tuple[float, float, float]
    thing_yaw: float
    target: tuple[float, float, float]
    done: bool

    def numbers(self) -> np.ndarray:
        """float64[17]: all fields in their order."""
        return np.hstack(list(vars(self).values()))

    @classmethod
    def of(cls, numbers: np.ndarray) -> State:
        """The state with these numbers; `numbers` is its inverse."""
        x = numbers.tolist()
        return cls(
            tool=(x[0], x[1], x[2]),
            command=(x[3], x[4], x[5]),
            yaw=x[6],
            yaw_command=x[7],
            opening=x[8],
            thing=(x[9], x[10], x[11]),
            thing_yaw=x[12],
            target=(x[13], x[14], x[15]),
            done=bool(x[16]),
        )


Action = tuple[float, float, float, float, float]  # dx, dy, dz [m], dyaw [rad], gripper (1 = open)


def held(state: State) -> bool:
    """Whether the object is between fingers that are not open."""
    return state.opening < OPENED and math.dist(state.tool, state.thing) < IN_HAND


def act(job: Job, state: State) -> Action:
    """The expert's next action."""
    if held(state):
        return _carry(job, state)
    if state.done:
        return _rise(state, state.target[2] + job.place + REST)
    if state.opening < OPENED:
        return _rise(state, state.thing[2] + HOVER)
    return _approach(job, state)


def _rise(state: State, height: float) -> Action:
    return (0.0, 0.0, _steer(max(0.0, height - state.tool[2])), 0.0, OPEN)


def _approach(job: Job, state: State) -> Action:
    dx = state.thing[0] - state.tool[0]
    dy = state.thing[1] - state.tool[1]
    error = math.hypot(dx, dy)
    turn = turn_across(job, state)
    grasp = max(job.low, state.thing[2])
    height = grasp + min(
        HOVER, SLOPE * (max(0.0, error - ALIGNED) + 0.1 * max(0.0, abs(turn) - SQUARE))
    )
    rise = height - state.tool[2]
    ready = (
        error < 1.5 * ALIGNED and abs(turn) < 1.5 * SQUARE and abs(state.tool[2] - grasp) < LEVEL
    )
    return (
        *_across(dx, dy, 1.0),
        _steer(rise),
        _clip(GAIN * turn, TURN),
        CLOSED if ready else OPEN,
    )


def turn_across(job: Job, state: State) -> float:
    """The turn to a yaw across the object [rad], the nearest one but for `LEAN`.

    Of yaws that look alike, an image does not show which. Where two are as near, the side would
    depend on what cannot be seen.
    """
    lean = LEAN * job.yaw_period
    return math.remainder(state.thing_yaw - state.yaw + lean, job.yaw_period) - lean


def _carry(job: Job, state: State) -> Action:
    dx = state.target[0] - state.thing[0]
    dy = state.target[1] - state.thing[1]
    error = math.hypot(dx, dy)
    x = state.thing
    y = state.target
    carry = y[2] + job.carry
    place = y[2] + job.place
    height = place + min(carry - place, SLOPE * max(0.0, error - job.radius))
    rise = height - x[2]
    speed = min(1.0, max(0.0, 1.0 - (rise - 0.015) / 0.03))  # up first, then across
    ready = error < 1.5 * job.radius and rise > -LEVEL
    return (*_across(dx, dy, speed), _steer(rise), 0.0, OPEN if ready else CLOSED)


def _across(dx: float, dy: float, share: float) -> tuple[float, float]:
    length = math.hypot(dx, dy)
    scale = share * min(GAIN, SPEED / max(length, 1e-9))
    return dx * scale, dy * scale


def _steer(error: float) -> float:
    return _clip(GAIN * error, SPEED)


def _clip(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def step(job: Job, state: State, action: Action) -> State:
    """Kinematic model: the tool follows its command late, fingers take what is between them, what
    is let go falls.
    """
    holding = held(state)
    command = _add(state.command, action[:3])
    moved = tuple(FOLLOW * (c - t) for c, t in zip(command, state.tool, strict=True))
    turned = FOLLOW * (state.yaw_command + action[3] - state.yaw)
    after = replace(
        state,
        tool=_add(state.tool, moved),
        command=command,
        yaw=state.yaw + turned,
        yaw_command=state.yaw_command + action[3],
    )
    if action[4] > 0.5:
        return replace(_dropped(job, after) if holding else after, opening=OPEN)
    if holding:
        return replace(after, thing=_add(state.thing, moved))
    return replace(after, opening=job.half / 0.04)


def _dropped(job: Job, state: State) -> State:
    x, y, _ = state.thing
    done = math.dist((x, y), state.target[:2]) < 3 * job.radius
    return replace(state, thing=(x, y, min(state.thing[2], state.target[2] + job.place)), done=done)


def _add(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float, float]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def chunk(job: Job, state: State, horizon: int = 16) -> np.ndarray:
    """The next `horizon` actions, float32[horizon, 7]: delta xyz [m], delta Euler [rad], gripper (1
    = open).
    """
    actions = np.zeros((horizon, 7), np.float32)
    for row in actions:
        dx, dy, dz, dyaw, gripper = act(job, state)
        row[:] = (dx, dy, dz, 0.0, 0.0, dyaw, gripper)
        state = step(job, state, (dx, dy, dz, dyaw, gripper))
    return actions
