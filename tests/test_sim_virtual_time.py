"""Latencies and the policy behind them: what is drawn, and which row of which chunk is executed
when.
"""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Known
from trimvla.sim.evaluation.latency import Latency, constant, parse, split
from trimvla.sim.evaluation.virtual_time import LatencySimulator, Pace

HZ = 5.0


def play(
    latency: Latency | None, ticks: int, pace: Pace, hz: float = HZ, rows: int = 16
) -> tuple[list[str], LatencySimulator]:
    """Every tick as "LOOK+ROW", what was executed, or "hold": the first number of a row says whose
    it is.
    """

    def look(tick: int, known: object) -> np.ndarray:
        chunk = np.zeros((rows, 7))
        chunk[:, 0] = tick + 1
        chunk[:, 1] = range(rows)
        chunk[:, 6] = 0.25
        return chunk

    simulator = LatencySimulator(look, hz, pace, latency)
    actions = [simulator.act(tick, "go") for tick in range(ticks)]
    return [f"{a[0] - 1:.0f}+{a[1]:.0f}" if a[0] else "hold" for a in actions], simulator


def test_where_the_simulator_waits_every_chunk_is_executed_from_its_first_row() -> None:
    assert play(None, 5, Pace(execute=2))[0] == ["0+0", "0+1", "2+0", "2+1", "4+0"]
    assert play(None, 20, Pace(execute=16))[0][15:18] == ["0+15", "16+0", "16+1"]


@pytest.mark.parametrize("hz", [3.0, 5.0, 30.0])
def test_a_chunk_comes_late_and_begins_at_the_row_that_is_due(hz: float) -> None:
    """Two and a half periods: there at the third tick; then the next image is looked at."""
    told, simulator = play(
        constant("late", 2500 / hz), 10, Pace(execute=1, votes=1, max_age_s=10), hz
    )
    assert told == ["hold", "hold", "hold", "0+3", "0+4", "0+5", "3+3", "3+4", "3+5", "6+3"]
    assert simulator.held == 3
    assert simulator.latencies_ms == [2500 / hz] * 4


def test_rows_that_are_not_valid_and_pictures_that_are_old_are_held_for() -> None:
    assert play(constant("late", 800), 9, Pace(execute=1, votes=1, valid_rows=6))[0][4:] == [
        "0+4",
        "0+5",
        "hold",
        "hold",
        "4+4",
    ]
    assert play(constant("late", 800), 7, Pace(execute=1, votes=1, valid_rows=16, max_age_s=1.0))[
        0
    ][4:] == [
        "0+4",
        "0+5",
        "hold",
    ]


def test_a_hold_keeps_the_grip() -> None:
    simulator = LatencySimulator(
        lambda tick, known: np.full((2, 7), 0.25), HZ, Pace(), constant("late", 300)
    )
    held = simulator.act(0, "go")
    _ = simulator.act(1, "go")
    last = [simulator.act(tick, "go") for tick in (2, 3, 4)][-1]
    assert held.tolist() == [0] * 6 + [1], "at first the gripper is open"
    assert last.tolist() == [0] * 6 + [1], "rows 2 and 3 of a chunk of two do not exist"


def test_a_new_sentence_voids_what_was_thought_about_the_last_one() -> None:
    simulator = LatencySimulator(
        lambda tick, known: np.full((16, 7), tick + 1.0),
        HZ,
        Pace(execute=1, votes=1),
        constant("late", 400),
    )
    words = ["a", "a", "a", "b", "b", "b", "b"]
    actions = [simulator.act(tick, word)[0] for tick, word in enumerate(words)]
    assert actions == [0, 0, 1, 0, 0, 0, 5], (
        "the look of tick 2 was about another instruction; it still had to end"
    )


def test_the_last_chunks_vote_where_every_step_looks() -> None:
    """By the rule of CogACT's ensemble: likeness to the newest."""
    rows = {0: np.eye(7)[:2], 1: -np.eye(7)[:2]}
    simulator = LatencySimulator(lambda tick, known: rows[tick], HZ, Pace(execute=1, votes=2))
    simulator.act(0, "go")
    assert np.count_nonzero(simulator.act(1, "go")) == 2


def test_a_guide_freezes_what_passes_while_nine_of_ten_looks_last() -> None:
    """Looks of one and three periods in turn; a new instruction has no chunk before it."""
    frozen = []

    def look(tick: int, known: Known | None) -> np.ndarray:
        frozen.append(0 if known is None else np.count_nonzero(known.weights == 1))
        return np.zeros((16, 7))

    pace = Pace(mode="latest", valid_rows=12, rtc=RtcConfig(enabled=True, margin_s=0.0))
    simulator = LatencySimulator(look, HZ, pace, Latency("turns", "trace", (200.0, 600.0)), seed=4)
    for tick in range(10):
        simulator.act(tick, "a" if tick < 5 else "b")
    first, second = simulator.latencies_ms[:2]
    assert {first, second} == {200.0, 600.0}
    assert frozen[:4] == [0, 1 + round(first / 200), 3, 0], (
        "what is expected third: 2.8 periods, so two rows and one"
    )


def test_draws_depend_on_their_seed_alone_and_follow_the_distribution() -> None:
    spread = parse("lognormal:150,0.2")
    drawn = list(islice(spread.draws(3), 4000))
    assert drawn == list(islice(spread.draws(3), 4000))
    assert drawn != list(islice(spread.draws(4), 4000))
    assert np.median(drawn) == pytest.approx(150, rel=0.02)
    assert np.std(np.log(drawn)) == pytest.approx(0.2, rel=0.05)
    assert np.mean(drawn) == pytest.approx(spread.mean_ms, rel=0.02)


def test_a_trace_goes_round_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([10, 20, 30]))
    trace = parse(str(path))
    drawn = list(islice(trace.draws(1), 6))
    assert {b - a for a, b in pairwise(drawn)} == {10, -20}
    assert trace.mean_ms == 20
    path.write_text(json.dumps({"x L0 vision": [1], "x L2 total": [7, 8]}))
    assert parse(str(path)).values == (7, 8), "as `bench --samples` writes them"


def test_several_latencies_are_told_apart() -> None:
    assert split("0,lognormal:150,0.2,orin:0.5,a.json") == [
        "0",
        "lognormal:150,0.2",
        "orin:0.5",
        "a.json",
    ]


@pytest.mark.parametrize("word", ["fast", "-1", "nan", "normal:3,1", "lognormal:3", "1e999"])
def test_what_is_no_latency_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        parse(word)


def test_wall_time_is_what_the_look_took() -> None:
    simulator = LatencySimulator(lambda tick, known: np.zeros((1, 7)), HZ, Pace(), parse("wall"))
    simulator.act(0, "go")
    assert simulator.latencies_ms == simulator.wall_ms
