"""The scripted expert: from privileged state and a goal to the next action, without memory.

Because it has no memory, the right action for any state and any goal is known, also for goals
nobody pursued: `chunk` plays the expert forward in a kinematic model of the robot and gives the
next H actions as a label. Knows poses; knows nothing of physics, images or language.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from trimvla.sim.tabletop.scene import (
    HALF_HEIGHT,
    OBJECT_HALF_WIDTH,
    ON_RADIUS,
    THICKNESS,
    Goal,
    Scene,
)

# the most a step moves [m] and turns [rad]
SPEED = 0.045
TURN = 0.15
# tool heights [m]
GRASP_Z = 0.018
HOVER = 0.075
CARRY_Z = 0.13
LIFT_Z = 0.17
REST_Z = 0.16
ALIGNED = 0.008  # horizontal error that counts as there [m]
SLOPE = 2.0  # metres of height kept per metre of error beyond
# where the tool may be [m]
FLOOR_Z = 0.016
CEILING_Z = 0.30
REACH_X = 0.22
REACH_Y = 0.20
OPEN = 1.0
CLOSED = 0.0


@dataclass(frozen=True)
class State:
    """Privileged state.

    Positions [m], yaw [rad], `opening` 0..1, `held` the index of the object in hand or -1.
    """

    tool: tuple[float, float, float]
    yaw: float
    opening: float
    held: int
    objects: tuple[tuple[float, float, float], ...]
    object_yaw: tuple[float, ...]


Action = tuple[float, float, float, float, float]  # dx, dy, dz [m], dyaw [rad], gripper (1 = open)


def support(scene: Scene, state: State, goal: Goal) -> tuple[float, float, float]:
    """x, y of what the object goes on, and the height of its top [m]."""
    if goal.verb == "stack":
        x, y, z = state.objects[goal.target]
        return x, y, z + HALF_HEIGHT[scene.objects[goal.target].kind]
    target = scene.targets[goal.target]
    return target.x, target.y, THICKNESS[target.kind]


def is_on(scene: Scene, state: State, goal: Goal) -> bool:
    """Whether the object lies on its target and the gripper has let go."""
    x, y, top = support(scene, state, goal)
    ox, oy, oz = state.objects[goal.object]
    kind = (
        scene.objects[goal.target].kind if goal.verb == "stack" else scene.targets[goal.target].kind
    )
    level = abs(oz - top - HALF_HEIGHT[scene.objects[goal.object].kind]) < 0.010
    return state.held != goal.object and level and math.hypot(ox - x, oy - y) < ON_RADIUS[kind]


def is_done(scene: Scene, state: State, goal: Goal) -> bool:
    """Success: lifted and held, or on its target and released."""
    if goal.verb == "pick":
        lifted = state.objects[goal.object][2] > HALF_HEIGHT[scene.objects[goal.object].kind] + 0.08
        return lifted and state.held == goal.object
    return is_on(scene, state, goal)


def act(scene: Scene, state: State, goal: Goal) -> Action:
    """The expert's next action."""
    if state.held == goal.object:
        return _carry(scene, state, goal)
    if goal.verb != "pick" and is_on(scene, state, goal):
        return _rise(state)
    if state.held >= 0 or state.opening < 0.8:
        return _release(state)
    return _approach(scene, state, goal)


def _rise(state: State) -> Action:
    return (0.0, 0.0, _clip(REST_Z - state.tool[2], SPEED), _clip(-state.yaw, TURN), OPEN)


def _release(state: State) -> Action:
    return (0.0, 0.0, _clip(max(0.0, 0.06 - state.tool[2]), SPEED), 0.0, OPEN)


def _approach(scene: Scene, state: State, goal: Goal) -> Action:
    x, y, _ = state.objects[goal.object]
    rest = state.objects[goal.object][2] - HALF_HEIGHT[scene.objects[goal.object].kind]
    grasp = GRASP_Z + max(0.0, rest)
    dx, dy, error = _towards(state.tool, x, y, SPEED)
    dz = _clip(_funnel(grasp, HOVER, error) - state.tool[2], SPEED)
    dyaw = _clip(state.object_yaw[goal.object] - state.yaw, TURN)
    ready = error < ALIGNED and state.tool[2] - grasp < 0.006
    return (dx, dy, dz, dyaw, CLOSED if ready else OPEN)


def _carry(scene: Scene, state: State, goal: Goal) -> Action:
    dyaw = _clip(-state.yaw, TURN)
    if goal.verb == "pick":
        return (0.0, 0.0, _clip(LIFT_Z - state.tool[2], SPEED), dyaw, CLOSED)
    x, y, top = support(scene, state, goal)
    held = state.objects[goal.object]
    below = state.tool[2] - (held[2] - HALF_HEIGHT[scene.objects[goal.object].kind])
    place = top + below + 0.004
    carry = CARRY_Z + top
    error = math.hypot(x - held[0], y - held[1])
    height = _funnel(place, carry - place, error)
    rise = height - state.tool[2]
    speed = SPEED * min(1.0, max(0.0, 1.0 - (rise - 0.02) / 0.04))  # up first, then across
    dx, dy, _ = _towards(held, x, y, speed)
    ready = error < ALIGNED and state.tool[2] - place < 0.006
    return (dx, dy, _clip(rise, SPEED), 0.0 if ready else dyaw, OPEN if ready else CLOSED)


def _funnel(low: float, hover: float, error: float) -> float:
    """Height to be at: `hover` above `low` when far, sinking as the horizontal error closes."""
    return low + min(hover, max(0.0, SLOPE * (error - ALIGNED)))


def _towards(
    start: tuple[float, ...], x: float, y: float, speed: float
) -> tuple[float, float, float]:
    dx = x - start[0]
    dy = y - start[1]
    error = math.hypot(dx, dy)
    scale = min(1.0, speed / error) if error > 1e-9 else 0.0
    return dx * scale, dy * scale, error


def _clip(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def limit_tool(x: float, y: float, z: float) -> tuple[float, float, float]:
    """The nearest point that the tool may reach [m]."""
    return _clip(x, REACH_X), _clip(y, REACH_Y), max(FLOOR_Z, min(CEILING_Z, z))


def step(scene: Scene, state: State, action: Action) -> State:
    """Kinematic model: the tool goes where it is sent, a closing gripper takes what is between its
    pads.
    """
    dx, dy, dz, dyaw, gripper = action
    tool = limit_tool(state.tool[0] + dx, state.tool[1] + dy, state.tool[2] + dz)
    moved = replace(state, tool=tool, yaw=state.yaw + dyaw)
    if gripper < 0.5:
        return _close(_drag(moved, state))
    dropped = _drop(scene, _drag(moved, state)) if state.held >= 0 else moved
    return replace(dropped, held=-1, opening=OPEN)


def _drag(moved: State, before: State) -> State:
    if moved.held < 0:
        return moved
    delta = [b - a for a, b in zip(before.tool, moved.tool, strict=True)]
    x, y, z = moved.objects[moved.held]
    return _place(moved, moved.held, (x + delta[0], y + delta[1], z + delta[2]))


def _close(state: State) -> State:
    if state.held >= 0:
        return state
    for i, (x, y, z) in enumerate(state.objects):
        inside = abs(x - state.tool[0]) < 0.04 and abs(y - state.tool[1]) < 0.025
        if inside and -0.03 < state.tool[2] - z < 0.02:
            taken = _place(state, i, (state.tool[0], y, z))
            return replace(taken, held=i, opening=OBJECT_HALF_WIDTH / 0.05)
    return replace(state, opening=CLOSED)


def _drop(scene: Scene, state: State) -> State:
    """The held object falls onto whatever lies below it."""
    x, y, _ = state.objects[state.held]
    half = HALF_HEIGHT[scene.objects[state.held].kind]
    tops = [
        o[2] + HALF_HEIGHT[scene.objects[i].kind]
        for i, o in enumerate(state.objects)
        if i != state.held and math.hypot(o[0] - x, o[1] - y) < ON_RADIUS["cube"]
    ]
    tops += [
        THICKNESS[t.kind] for t in scene.targets if math.hypot(t.x - x, t.y - y) < ON_RADIUS[t.kind]
    ]
    return _place(state, state.held, (x, y, max([half, *(top + half for top in tops)])))


def _place(state: State, index: int, position: tuple[float, float, float]) -> State:
    objects = (*state.objects[:index], position, *state.objects[index + 1 :])
    return replace(state, objects=objects)


def chunk(scene: Scene, state: State, goal: Goal, horizon: int = 16) -> np.ndarray:
    """The next `horizon` actions, float32[horizon, 7]: delta xyz [m], delta axis-angle [rad],
    gripper (1 = open).
    """
    actions = np.zeros((horizon, 7), np.float32)
    for row in actions:
        dx, dy, dz, dyaw, gripper = act(scene, state, goal)
        row[:] = (dx, dy, dz, 0.0, 0.0, dyaw, gripper)
        state = step(scene, state, (dx, dy, dz, dyaw, gripper))
    return actions
