"""The gate over generated inputs, and holds by action kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.control.fallback import as_command, hold, moves
from trimvla.runtime.control.safety import Limits, Motion, check, place
from trimvla.runtime.errors import ConfigError

LIMITS = Limits(
    low=(-0.05, -0.4, 0.0), high=(0.05, 0.4, 1.0), max_change=(0.02, math.inf, math.inf)
)
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    bounds = draw(
        st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=8)
    )
    change = draw(
        st.lists(
            st.floats(1e-6, 1e4) | st.just(math.inf), min_size=len(bounds), max_size=len(bounds)
        )
    )
    return Limits(tuple(map(min, bounds)), tuple(map(max, bounds)), tuple(change))


@settings(max_examples=400, deadline=None)
@given(limits(), st.data())
def test_nothing_passes_that_is_outside_the_limits(bounds, data):
    size = len(bounds.low)
    actions = data.draw(
        st.lists(st.lists(anything, min_size=size, max_size=size), min_size=1, max_size=5)
    )
    previous = None
    for wanted in actions:
        verdict = check(wanted, bounds, previous)
        if verdict.action is None:
            assert not np.isfinite(wanted).all() and verdict.reasons
            continue
        assert np.isfinite(verdict.action).all()
        assert (verdict.action >= bounds.low).all() and (verdict.action <= bounds.high).all()
        if previous is not None:
            change = np.asarray(bounds.max_change)
            assert (verdict.action <= previous + change).all() and (
                verdict.action >= previous - change
            ).all()
        assert bool(verdict.reasons) == (not np.array_equal(verdict.action, wanted))
        again = check(verdict.action, bounds, previous)
        assert (
            again.action is not None
            and np.array_equal(again.action, verdict.action)
            and not again.reasons
        )
        previous = verdict.action


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, min_size=3, max_size=3), st.lists(anything, min_size=3, max_size=3))
def test_the_range_holds_whatever_came_before(wanted, previous):
    action = check(wanted, LIMITS, previous).action
    assert (action is None) == (not np.isfinite([*wanted, *previous]).all())
    assert action is None or ((action >= LIMITS.low).all() and (action <= LIMITS.high).all())


def test_a_good_action_passes_unchanged():
    verdict = check([0.01, -0.3, 1.0], LIMITS, [0.0, 0.0, 0.0])
    assert (
        verdict.action is not None
        and verdict.action.tolist() == [0.01, -0.3, 1.0]
        and verdict.reasons == ()
    )


def test_reasons_say_what_was_changed():
    verdict = check([0.2, -0.5, 1.0], LIMITS, [0.0, 0.0, 0.0])
    assert verdict.action is not None and verdict.action.tolist() == [0.02, -0.4, 1.0]
    assert verdict.reasons == ("out of range in dimension 0, 1", "too sudden in dimension 0")


@pytest.mark.parametrize(
    ("action", "previous", "reason"),
    [
        ([0.0, math.nan, math.inf], None, "action: not finite in dimension 1, 2"),
        ([0.0, 0.0], None, r"action: expected 3 numbers, got shape \[2\]"),
        ([[0.0, 0.0, 0.0]], None, r"action: expected 3 numbers, got shape \[1, 3\]"),
        ([0.0, 0.0, 0.0], [math.nan, 0.0, 0.0], "previous command: not finite in dimension 0"),
    ],
)
def test_what_is_no_action_is_refused(action, previous, reason):
    verdict = check(action, LIMITS, previous)
    assert verdict.action is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError("; ".join(verdict.reasons))


WIDE = Limits(
    (-9.0,),
    (9.0,),
    velocity=(1.0,),
    acceleration=(2.0,),
    workspace_low=(-0.5,),
    workspace_high=(0.5,),
)


@pytest.mark.parametrize(
    ("kind", "before", "wanted", "allowed", "what"),  # before: last command, its velocity, position
    [
        ("delta", (0.1, 1.0, 0.0), 0.3, 0.1, "too fast"),  # 1.0 per second at 10 Hz
        ("velocity", (1.0, 1.0, 0.0), 3.0, 1.0, "too fast"),
        ("absolute", (-0.2, 1.0, 9.0), 0.5, -0.1, "too fast"),
        # 2.0 per second squared: 0.2 per second after one tick
        ("delta", (0.0, 0.0, 0.0), 0.05, 0.02, "too abrupt"),
        ("velocity", (0.0, 0.0, 0.0), 0.5, 0.2, "too abrupt"),
        ("absolute", (0.2, 0.0, 9.0), 0.3, 0.22, "too abrupt"),
        ("delta", (0.0, 0.0, 0.5), 0.01, 0.0, "out of the workspace"),
        ("delta", (0.0, 0.0, 0.9), 0.01, 0.0, "out of the workspace"),  # outside: not further
        ("delta", (0.0, 0.0, 0.9), -0.01, -0.01, ""),  # but back
        (
            "delta",
            (0.01, 0.1, 0.47),
            0.03,
            0.02,
            "out of the workspace",
        ),  # 0.02 now, then 0.01 are left to stop from 0.2
    ],
)
def test_motions_have_limits_whatever_the_kind(kind: ActionKind, before, wanted, allowed, what):
    previous, velocity, position = before
    motion = Motion((kind,), 10.0, np.array([velocity]), np.array([position]))
    verdict = check([wanted], WIDE, [previous], motion)
    assert verdict.action is not None and verdict.action[0] == pytest.approx(allowed, abs=1e-12)
    assert what in "; ".join(verdict.reasons) and bool(what) == bool(verdict.reasons)


def test_a_workspace_needs_to_know_where_the_robot_is():
    kinds: tuple[ActionKind, ...] = ("delta", "gripper", "delta")
    assert place(kinds, (0.1, 0.2)).tolist() == pytest.approx([0.1, math.nan, 0.2], nan_ok=True)
    limits = Limits((-1.0,) * 3, (1.0,) * 3, workspace_high=(math.inf, math.inf, 0.5))
    motions = [
        Motion(kinds, 10.0, np.zeros(3), place(kinds, p))
        for p in ((math.nan, 0.2), (0.1,), (0.1, math.inf))
    ]
    verdicts = [check([0.1, 0.0, 0.1], limits, [0.0] * 3, motion) for motion in motions]
    assert [v.reasons for v in verdicts] == [(), *[("position: unknown in dimension 2",)] * 2]
    assert [v.action is None for v in verdicts] == [False, True, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (((0.0,), (1.0, 1.0), (1.0,)), "one length"),
        (((2.0,), (1.0,), (1.0,)), "'low' <= 'high'"),
        (((-math.inf,), (1.0,), (1.0,)), "finite"),
        (((0.0,), (1.0,), (0.0,)), "'max_change'"),
        (((0.0,), (1.0,), None, (-1.0,)), "'velocity'"),
        (((0.0,), (1.0,), None, None, (0.0,)), "'acceleration'"),
        (((0.0,), (1.0,), None, None, None, (1.0,), (0.0,)), "'workspace_low'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        Limits(*fields)


def test_a_hold_knows_the_action_space():
    kinds = ("delta", "velocity", "absolute", "gripper")
    assert hold(kinds, [0.3, 0.4, 0.5, 1.0]).tolist() == [0.0, 0.0, 0.5, 1.0]
    with pytest.raises(ConfigError, match="'last'"):
        hold(kinds, [0.0])


def test_a_velocity_is_ramped_to_zero_and_not_beyond():
    kinds = ("delta", "velocity", "velocity", "gripper")
    command = np.array([0.3, 0.5, -0.25, 1.0])
    ramp = [0.1, 0.2, 0.2, 0.1]
    seen = []
    while moves(kinds, command):
        command = hold(kinds, command, ramp)
        seen.append(command.tolist())
    expected = [[0, 0.3, -0.05, 1], [0, 0.1, 0, 1], [0, 0, 0, 1]]
    assert len(seen) == 3 and np.allclose(seen, expected, atol=1e-12)


def test_where_the_robot_is_can_be_held():
    arm = as_command(("delta", "delta", "gripper"), (), 1.0)
    assert arm is not None and arm.tolist() == [0.0, 0.0, 1.0]
    joints = as_command(("absolute", "absolute", "gripper"), (0.1, 0.2), 0.0)
    assert joints is not None and joints.tolist() == [0.1, 0.2, 0.0]
    assert as_command(("absolute", "gripper"), (), 0.0) is None
    assert as_command(("delta", "gripper"), (), math.nan) is None
