"""The quality ladder: properties over generated conditions, then real bundles in the policy's real loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import KINDS, write_bundle

from trimvla.runtime import control, policy_process
from trimvla.runtime.board import Board, read_board
from trimvla.runtime.bus import Publisher, Subscriber
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.controller import ControlConfig
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.ladder import ENOUGH, Conditions, Ladder, LadderConfig, level
from trimvla.runtime.messages import ActionChunk, Frame, JointState, Report, Task
from trimvla.runtime.phase import Phase
from trimvla.runtime.policy_process import PolicyConfig
from trimvla.runtime.safety import Limits
from trimvla.runtime.telemetry import Telemetry
from trimvla.runtime.thinker import Thinker, ThoughtConfig
from trimvla.runtime.topics import topic

COSTS = (0.2, 0.1, 0.05)
CONFIG = LadderConfig(deadline_s=0.3, patience_s=1.0, dwell_s=2.0, retry_s=10.0, hot_c=80.0, coarse=1)
CALL_S = 0.25  # between two calls
CONDITIONS = st.builds(
    Conditions,
    temperature_c=st.none() | st.floats(20, 110),
    power_w=st.none() | st.floats(1, 60),
    fine=st.booleans(),
)
MOMENTS = st.lists(st.tuples(CONDITIONS, st.floats(0.3, 6.0)), min_size=1, max_size=120)


def play(ladder: Ladder, moments: list[tuple[Conditions, float]]) -> Iterator[tuple[float, int, float]]:
    """Time, rung and duration of one call after the other; `moments` say by how much the machine is slowed down."""
    for number, (conditions, slowdown) in enumerate(moments):
        now = number * CALL_S
        ladder.decide(now, conditions)
        took = COSTS[ladder.rung] * slowdown
        ladder.timed(now, took)
        yield now, ladder.rung, took


@given(MOMENTS)
@settings(max_examples=300, deadline=None)
def test_no_two_switches_within_the_dwell_time(moments):
    told = list(play(Ladder(CONFIG, COSTS), moments))
    switches = [now for (_, before, _), (now, after, _) in pairwise(told) if before != after]
    assert all(later - earlier >= CONFIG.dwell_s for earlier, later in pairwise(switches))


@given(MOMENTS)
@settings(max_examples=300, deadline=None)
def test_no_rung_but_the_last_misses_its_deadline_for_long(moments):
    limit_s = CONFIG.dwell_s + CONFIG.patience_s + (ENOUGH + 1) * CALL_S
    since, before = None, 0
    for now, rung, took in play(Ladder(CONFIG, COSTS), moments):
        late = took > CONFIG.deadline_s and rung < len(COSTS) - 1
        since = None if not late or rung != before else now if since is None else since
        assert since is None or now - since <= limit_s
        before = rung


@given(MOMENTS, st.floats(20, 110), st.floats(0, 60), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_hotter_board_never_gives_a_higher_rung(moments, cooler, more, fine):
    """From the same past, whatever it was."""
    rungs = []
    for temperature in (cooler, cooler + more):
        ladder = Ladder(CONFIG, COSTS)
        list(play(ladder, moments))
        ladder.decide(len(moments) * CALL_S + CONFIG.dwell_s, Conditions(temperature, None, fine))
        rungs.append(ladder.rung)
    assert rungs[0] <= rungs[1]


@given(st.lists(st.tuples(st.floats(20, 110), st.floats(0, 30)), max_size=50))
def test_heat_keeps_its_order_through_hysteresis(readings):
    cool = warm = 0
    for temperature, more in readings:
        cool = level(cool, temperature, (80.0, 85.0), 5.0)
        warm = level(warm, temperature + more, (80.0, 85.0), 5.0)
        assert cool <= warm
    assert level(warm, None, (80.0, 85.0), 5.0) == warm  # a sensor that falls silent changes nothing


def run(ladder: Ladder, seconds: float, start: float = 0.0, slowdown: float = 1.0, **conditions) -> list[str]:
    """Calls under one set of conditions; the reasons of the switches."""
    reasons = []
    for number in range(round(seconds / CALL_S)):
        now = start + number * CALL_S
        switch = ladder.decide(now, Conditions(**conditions))
        reasons += [f"{switch.before} -> {switch.after} {switch.cause}: {switch.reason}"] if switch else []
        ladder.timed(now, COSTS[ladder.rung] * slowdown)
    return reasons


def test_every_reason_by_hand():
    ladder = Ladder(CONFIG, COSTS)
    assert run(ladder, 5) == []
    assert run(ladder, 5, 10, slowdown=2) == ["0 -> 1 deadline: a call took 400 of 300 ms for 1 s"]
    assert run(ladder, 5, 15) == []  # it would fit again, and is barred
    assert run(ladder, 5, 30) == ["1 -> 0 motion: fine motion; a call is expected to take 200 of 300 ms"]
    assert run(ladder, 5, 40, fine=False) == ["0 -> 1 motion: coarse motion"]
    assert run(ladder, 5, 50, temperature_c=86.0) == ["1 -> 2 heat: the board is hot at 86 degrees"]
    assert run(ladder, 5, 60, temperature_c=79.0) == [
        "2 -> 1 motion: fine motion; a call is expected to take 100 of 300 ms"
    ]
    assert run(ladder, 5, 70, temperature_c=70.0) == [
        "1 -> 0 motion: fine motion; a call is expected to take 200 of 300 ms"
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LadderConfig(deadline_s=0),
        lambda: LadderConfig(headroom=1.5),
        lambda: Ladder(LadderConfig(coarse=3), COSTS),
        lambda: PolicyConfig(rungs=("a", "a")),
    ],
)
def test_ladders_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def planned(rows: list[tuple[float, float]], time_ns: int = 0) -> ActionChunk:
    """A chunk of (x, gripper)."""
    actions = tuple((x, 0.0, 0.0, 0.0, 0.0, 0.0, gripper) for x, gripper in rows)
    return ActionChunk(
        time_ns=time_ns,
        episode=1,
        actions=actions,
        control_hz=5.0,
        valid_rows=len(rows),
        produced_ns=time_ns,
        frame_sequence=0,
        seed=(0,),
    )


def test_fine_is_slow_or_near_the_gripper():
    phase = Phase(ThoughtConfig().phase, KINDS)
    assert phase.fine(0)  # nothing is known yet
    phase.hear(planned([(0.04, 1.0)] * 8))
    assert not phase.fine(0)
    phase.hear(planned([(0.01, 1.0)] * 8))
    assert phase.fine(0)
    phase.hear(planned([(0.04, 1.0)] * 7 + [(0.04, 0.0)]))  # closes after 1.4 s
    assert not phase.fine(0) and phase.fine(NS_PER_S) and not phase.fine(3 * NS_PER_S)
    phase.hear(planned([(0.04, 0.0)] * 8, time_ns=2 * NS_PER_S))  # has closed
    assert phase.fine(2 * NS_PER_S) and not phase.fine(4 * NS_PER_S)


def test_a_board_says_how_it_feels(tmp_path):
    assert read_board(tmp_path) == Board(None, None)
    files = {
        "class/thermal/thermal_zone0/temp": "51000",
        "class/thermal/thermal_zone1/temp": "62500",
        "class/thermal/thermal_zone2/temp": "-256000",  # off
        "class/hwmon/hwmon0/name": "ina3221",
        "class/hwmon/hwmon0/in1_label": "VDD_IN",
        "class/hwmon/hwmon0/in1_input": "5000",
        "class/hwmon/hwmon0/curr1_input": "2000",
        "class/hwmon/hwmon0/in2_label": "VDD_CPU_GPU_CV",
        "class/hwmon/hwmon0/in2_input": "5000",
        "class/hwmon/hwmon0/curr2_input": "800",
    }
    for name, text in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert read_board(tmp_path) == Board(62.5, 10.0)


class Slow:
    """Takes its time, and says who it is."""

    def __init__(self, name: float, seconds: float) -> None:
        self.name, self.seconds, self.calls = name, seconds, 0
        self.actions, self.milliseconds = np.full((8, 7), name), {"total": 0.0}

    def infer(self, image: np.ndarray, instruction: str, *, seed: tuple[int, ...]) -> Slow:
        self.calls += 1
        return self


def test_the_thinker_changes_rungs_with_its_board_and_says_why():
    now, board = [0], [Board(40.0)]
    top, bottom = Slow(0.0, 0.1), Slow(0.01, 0.05)
    config = ThoughtConfig(ladder=LadderConfig(hot_c=80.0, dwell_s=1.0))
    thinker = Thinker(
        {"top": top, "bottom": bottom}, config, costs_s=(0.1, 0.05), sense=lambda: board[0], now_ns=lambda: now[0]
    )
    telemetry, told = Telemetry("policy"), []
    task = Task(time_ns=0, episode=1, instruction="go", started_ns=0)
    for call in range(12):
        board[0] = Board(90.0 if 4 <= call < 8 else 40.0)
        frame = Frame("front", now[0], np.zeros((4, 4, 3), np.uint8))
        thought = thinker.think(task, frame, (call,), telemetry)
        told.append(thought.about["rung"])
        now[0] += NS_PER_S
    assert told == ["top"] * 4 + ["bottom"] * 4 + ["top"] * 4
    assert (top.calls, bottom.calls) == (8, 4)
    assert (telemetry.counters["rung_switches"], telemetry.counters["rung_by_heat"]) == (2, 1)
    assert telemetry.values == {"rung": 0.0, "temperature_c": 40.0}
