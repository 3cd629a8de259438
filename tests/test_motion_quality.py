"""How a robot is made to move: the figures by hand, added up, on the report, and between two
policies.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trimvla.launch.motion.recorded import recorded_motion
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    EStop,
    JointState,
    Operator,
    Task,
)
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.control.hold_reasons import OTHER, hold_kind
from trimvla.runtime.control.interlock import WORDS, Interlock, InterlockConfig
from trimvla.runtime.control.motion_quality import (
    MotionMeter,
    as_values,
    figures,
    from_values,
    merged,
    quantile,
)
from trimvla.runtime.record.recording import Recording, RecordingWriter
from trimvla.sim.evaluation.motion_pairs import compare_motion, motion_words

HZ = 10.0


def counted(kinds: tuple[ActionKind, ...], rows: NDArray[np.float64], **limits: object):
    meter = MotionMeter(kinds, HZ, **limits)  # type: ignore[arg-type]
    for row in rows:
        meter.add(row)
    return meter.counts()


def test_one_motion_has_one_jerk_whatever_kind_of_action_commands_it() -> None:
    """x = t^3: the jerk is 6 everywhere, and a third difference of a cubic is exact."""
    times = np.arange(9) / HZ
    position = times**3
    velocity = np.diff(position, append=(9 / HZ) ** 3) * HZ
    rows = np.stack([position, velocity, velocity / HZ], axis=1)
    found = figures(counted(("absolute", "velocity", "delta"), rows))
    for each in found.dimensions:
        assert each.jerk_rms == pytest.approx(6, rel=1e-6), each.kind
        assert each.jerk_p99 == pytest.approx(6, rel=0.06)
    assert (found.commands, found.seconds) == (9, 0.9)


def test_a_percentile_is_right_to_five_percent_over_all_sizes() -> None:
    jerks = 10 ** np.random.default_rng(0).uniform(-4, 6, 2000)
    meter = MotionMeter(("delta",), HZ)
    for jerk in jerks:
        meter.restart()
        for value in (0.0, 0.0, 0.0, jerk / HZ**3):
            meter.add([value])
    expected = np.quantile(jerks, 0.99, method="inverted_cdf")
    found = quantile(meter.counts().buckets[0], 0.99)
    assert found == pytest.approx(expected, rel=0.06)
    assert figures(meter.counts()).dimensions[0].jerk_rms == pytest.approx(
        math.sqrt((jerks**2).mean()), rel=1e-5
    )


def test_a_gripper_flips_once_a_turn_and_not_with_every_tremble() -> None:
    closed_to_open = [0.0, 0.45, 0.55, 0.45, 0.55, 0.7, 0.55, 0.45, 0.7]
    found = figures(counted(("gripper",), np.array(closed_to_open)[:, None]))
    assert found.gripper_flips_per_minute == pytest.approx(60 / 0.9, rel=1e-5)  # one in 0.9 s
    assert found.dimensions[0].jerk_rms is None
    degrees = np.array([10.0, 90.0, 10.0])[:, None]  # LeRobot's grippers go from 0 to 100
    turned = counted(("gripper",), degrees, low=[0.0], high=[100.0])
    assert turned.flips == 2
    assert figures(counted(("delta",), degrees)).gripper_flips_per_minute is None


def test_the_distance_to_the_limits_is_a_share_of_the_range() -> None:
    rows = np.array([[0.0, 5.0], [0.5, 5.0], [1.0, 5.0], [-1.0, 5.0]])
    found = figures(counted(("delta", "delta"), rows, low=[-1.0, -np.inf], high=[1.0, np.inf]))
    first, second = found.dimensions
    assert (first.limit_distance, first.at_limit) == (0.0, 0.5)
    assert (second.limit_distance, second.at_limit) == (None, None)
    inside = figures(counted(("delta",), rows[:2, :1], low=[-1.0], high=[1.0]))
    assert inside.dimensions[0].limit_distance == 0.25


def test_a_pause_and_what_is_no_number_break_the_motion_but_not_the_count() -> None:
    meter = MotionMeter(("absolute",), HZ)
    for value in (0.0, 0.0, 0.0, 0.0):
        meter.add([value])
    meter.restart()
    for value in (9.0, 9.0, 9.0, math.nan, 9.0):
        meter.add([value])
    counts = meter.counts()
    assert (counts.commands, counts.jerks, counts.squares) == (9, 1, (0.0,))
    assert figures(counts).dimensions[0].jerk_rms == 0.0


def test_counts_of_stretches_add_up_and_travel_as_json() -> None:
    rng = np.random.default_rng(1)
    kinds: tuple[ActionKind, ...] = ("delta", "absolute", "gripper")
    limits = {"low": [-2.0, -2.0, 0.0], "high": [2.0, 2.0, 1.0]}
    rows = rng.uniform(-1, 1, (40, 3))
    whole = MotionMeter(kinds, HZ, **limits)
    parts = []
    for half in (rows[:15], rows[15:]):
        part = MotionMeter(kinds, HZ, **limits)
        whole.restart()
        for place, row in enumerate(half):
            why = "no chunk" if place % 3 == 0 else None
            whole.add(row, why)
            part.add(row, why)
        parts.append(part.counts())
    assert figures(merged(parts)) == figures(whole.counts())
    import dataclasses

    import msgspec

    text = json.dumps(dataclasses.asdict(parts[0]))
    assert msgspec.json.decode(text, type=type(parts[0])) == parts[0]


def test_a_report_carries_the_figures() -> None:
    meter = MotionMeter(("delta", "gripper"), HZ, [-1.0, 0.0], [1.0, 1.0])
    for value in (0.1, 0.4, 0.2, 0.9, 0.3):
        meter.add([value, value], "gate" if value == 0.9 else None)
    found = figures(meter.counts())
    counters = {"actions": 4, "holds": 1, "held.gate": 1}
    assert from_values(as_values(found), counters, ("delta", "gripper")) == found


def episodes(scale: float, seed: int, *, count: int = 40, flips: int = 1):
    """Motions of one size, with so many flips of the gripper each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        meter = MotionMeter(("delta", "delta", "gripper"), HZ)
        for step in range(30):
            turn = float((step * (flips + 1) // 30) % 2)
            meter.add([*(rng.normal(size=2) * scale), turn])
        found.append(meter.counts())
    return found


def test_a_policy_that_moves_worse_is_called_so_and_by_which_figure() -> None:
    reference = episodes(0.01, seed=0)
    rough = compare_motion(episodes(0.014, seed=1), reference)
    assert rough.moves_worse
    assert rough.jerk.worse
    assert rough.jerk.ratio == pytest.approx(1.4, rel=0.1)
    assert not rough.flips.worse
    assert motion_words("b", "a", rough).startswith("b moves worse than a: jerk 1.")
    alike = compare_motion(episodes(0.01, seed=2), reference)
    assert not alike.moves_worse
    assert alike.jerk.no_worse
    assert motion_words("b", "a", alike).startswith("b moves no worse than a")
    restless = compare_motion(episodes(0.01, seed=3, flips=3), reference)
    assert restless.flips.ratio == pytest.approx(3)
    assert "gripper flips 3.00 times" in motion_words("b", "a", restless)
    few = compare_motion(episodes(0.02, seed=4, count=3), reference[:3])
    assert "do not settle" in motion_words("b", "a", few), "three episodes prove nothing"


def test_a_figure_that_the_reference_does_not_have_at_all() -> None:
    still = episodes(0.0, seed=0, count=12, flips=0)
    moved = episodes(0.01, seed=1, count=12)
    found = compare_motion(moved, still)
    assert (found.flips.ratio, found.flips.worse) == (None, True)
    assert found.jerk_by_dimension == (None, None, None)
    assert not compare_motion(still, still).moves_worse
    with pytest.raises(ValueError, match="as many episodes of both"):
        compare_motion(moved, still[:3])


def interlock_reasons() -> set[str]:
    """Every reason that the interlock itself gives, from its own mouth."""
    found: set[str] = set()
    lock = Interlock(InterlockConfig(estop=True, deadman=True))
    task = Task(time_ns=1, episode=0, instruction="go", started_ns=1)

    def step(now_ns: int, task: Task | None, words: tuple = (), estop: EStop | None = None) -> None:
        lock.receive(now_ns, task, words, estop)
        found.add(lock.reason)

    step(1, None)
    step(2, task)
    step(3, task, estop=EStop(time_ns=3, pressed=False))
    for request in WORDS:
        step(4, task, (Operator(time_ns=4, request=request),), EStop(time_ns=4, pressed=False))
    step(5, Task(time_ns=5, episode=1, instruction="go", started_ns=5, active=False))
    step(6, task, estop=EStop(time_ns=6, pressed=True, source="a person"))
    step(7, task, (Operator(time_ns=7, request="reset"),), EStop(time_ns=7, pressed=False))
    step(8, task)
    found |= {lock.released(9, None), lock.released(9, Deadman(time_ns=9, held=False))}
    return found


def test_every_reason_of_the_interlock_has_a_kind() -> None:
    found = interlock_reasons()
    assert len(found) >= 8
    assert {reason for reason in found if hold_kind(reason) == OTHER} == set()


def test_reasons_of_the_queue_the_gate_and_the_loop_have_kinds() -> None:
    from trimvla.runtime.bus.messages import ActionChunk
    from trimvla.runtime.chunks.chunk_queue import ChunkQueue, QueueConfig

    chunk = ActionChunk(
        time_ns=10**9,
        sequence=1,
        episode=0,
        actions=((0.0,),) * 4,
        control_hz=5.0,
        kinds=("delta",),
        valid_rows=2,
        produced_ns=10**9,
        frame_sequence=0,
        seed=(1,),
    )
    queue = ChunkQueue(QueueConfig(max_age_s=1.0), ("delta",))
    told = [str(queue.due(10**9))]
    queue.push(chunk, 10**9)
    told += [str(queue.due(10**9 + 500_000_000)), str(queue.due(4 * 10**9))]
    assert [hold_kind(reason) for reason in told] == ["no chunk", "chunk ran out", "image too old"]
    assert hold_kind(told[0] + "; refused: image too dark") == "image refused"
    assert hold_kind("3 of 4 processes are gone") == OTHER
    assert re.fullmatch(r"[a-z -]+", hold_kind("control stops"))


def test_the_controller_names_the_robots_silence() -> None:
    from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
    from trimvla.runtime.control.safety import Limits

    config = ControlConfig(Limits(low=(-1.0,), high=(1.0,)), ("delta",))
    controller = Controller(config)
    task = Task(time_ns=10**9, episode=0, instruction="go", started_ns=10**9)
    inputs = Inputs(task=task)
    reasons = [controller.decide(10**9, inputs).reason]
    old = JointState(time_ns=0, position=(0.0,), gripper=1.0)
    reasons.append(controller.decide(2 * 10**9, Inputs(task=task, robot=old)).reason)
    assert [hold_kind(reason) for reason in reasons] == ["robot state", "robot state"]


def write_commands(path: Path, *, kinds: tuple[ActionKind, ...]) -> Recording:
    """Eight commands at 5 Hz, two of them holds, then a pause of a second and four more."""
    times = [place * 200_000_000 for place in range(8)]
    times += [times[-1] + 1_000_000_000 + place * 200_000_000 for place in range(4)]
    system = {"control": {"hz": 5.0, "limits": {"low": [-0.1, 0.0], "high": [0.1, 1.0]}}}
    with path.open("wb") as stream:
        writer = RecordingWriter(stream, {"system": json.dumps(system)})
        chunk = ActionChunk(
            time_ns=1,
            episode=0,
            actions=((0.0, 1.0),),
            control_hz=5.0,
            kinds=kinds,
            valid_rows=1,
            produced_ns=1,
            frame_sequence=0,
            seed=(1,),
        )
        writer.add(topic("chunk"), 1, wire.encode(topic("chunk"), chunk))
        for place, time_ns in enumerate(times):
            held = place in (3, 4)
            command = Command(
                time_ns=10 + time_ns,
                sequence=place,
                episode=0,
                kind="hold" if held else "action",
                action=(0.0 if held else 0.05, float(place < 6)),
                reason="no chunk yet" if held else "",
            )
            writer.add(topic("command"), time_ns, wire.encode(topic("command"), command))
        writer.finish()
    return Recording(path)


def test_a_recording_shows_how_the_robot_moved(tmp_path: Path) -> None:
    found = recorded_motion(write_commands(tmp_path / "a.mcap", kinds=("delta", "gripper")))
    assert found is not None
    assert (found.commands, found.seconds) == (12, 2.4)
    assert found.holds == {"no chunk": pytest.approx(2 / 12, rel=1e-5)}
    assert found.gripper_flips_per_minute == pytest.approx(60 / 2.4)
    # second differences of 0.05 0.05 0.05 0 0 0.05 0.05 0.05 and, after the pause, of equal ones
    squares = [0.05**2 * count for count in (1, 1, 1, 1, 0, 0)]
    expected = math.sqrt(sum(squares) / 6) * 5.0**3
    assert found.dimensions[0].jerk_rms == pytest.approx(expected, rel=1e-5)
    assert found.dimensions[0].limit_distance == pytest.approx(0.25)


def test_commands_of_unknown_meaning_have_no_figures(tmp_path: Path) -> None:
    assert recorded_motion(write_commands(tmp_path / "a.mcap", kinds=())) is None
