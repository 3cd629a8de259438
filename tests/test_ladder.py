"""The quality ladder: properties over generated conditions, then real bundles in the policy's real
loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import KINDS, write_bundle

from trimvla.runtime.bundle import manifest
from trimvla.runtime.bundle.action_meaning import ActionMeaning
from trimvla.runtime.bus.messages import ActionChunk, Command, Frame, JointState, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.control import process as control
from trimvla.runtime.control.controller import ControlConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.board_sensors import Board, read_board
from trimvla.runtime.inference.ladder import ENOUGH, Conditions, Ladder, LadderConfig, level
from trimvla.runtime.inference.motion_phase import Phase
from trimvla.runtime.inference.policy import Known
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_loop import PolicyLoop
from trimvla.runtime.inference.rungs import load_rungs
from trimvla.runtime.inference.scheduler import InferenceScheduler, SchedulerConfig, warm_up
from trimvla.runtime.preprocess.observation import Observation, one_image

COSTS = (0.2, 0.1, 0.05)
CONFIG = LadderConfig(
    deadline_s=0.3, patience_s=1.0, dwell_s=2.0, retry_s=10.0, hot_c=80.0, coarse=1
)
CALL_S = 0.25  # between two calls
CONDITIONS = st.builds(
    Conditions,
    temperature_c=st.none() | st.floats(20, 110),
    power_w=st.none() | st.floats(1, 60),
    fine=st.booleans(),
)
SPELLS = st.lists(
    st.tuples(CONDITIONS, st.floats(0.3, 6.0), st.integers(1, 40)), min_size=1, max_size=12
)
MOMENTS = SPELLS.map(
    lambda spells: [(now, slowdown) for now, slowdown, calls in spells for _ in range(calls)]
)


def play(
    ladder: Ladder, moments: list[tuple[Conditions, float]]
) -> Iterator[tuple[float, int, float]]:
    """Time, rung and duration of one call after the other; `moments` say by how much the machine is
    slowed down.
    """
    for number, (conditions, slowdown) in enumerate(moments):
        now = number * CALL_S
        ladder.decide(now, conditions)
        took = COSTS[ladder.rung] * slowdown
        ladder.timed(now, took)
        yield now, ladder.rung, took


@given(MOMENTS)
@settings(max_examples=200, deadline=None)
def test_no_two_switches_within_the_dwell_time(moments):
    told = list(play(Ladder(CONFIG, COSTS), moments))
    switches = [now for (_, before, _), (now, after, _) in pairwise(told) if before != after]
    assert all(later - earlier >= CONFIG.dwell_s for earlier, later in pairwise(switches))


@given(MOMENTS)
@settings(max_examples=200, deadline=None)
def test_no_rung_but_the_last_misses_its_deadline_for_long(moments):
    limit_s = CONFIG.dwell_s + CONFIG.patience_s + (ENOUGH + 1) * CALL_S
    since = None
    before = 0
    for now, rung, took in play(Ladder(CONFIG, COSTS), moments):
        late = took > CONFIG.deadline_s and rung < len(COSTS) - 1
        since = None if not late or rung != before else now if since is None else since
        assert since is None or now - since <= limit_s
        before = rung


@given(MOMENTS, st.floats(20, 110), st.floats(0, 60), st.booleans())
@settings(max_examples=200, deadline=None)
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
    # a sensor that falls silent changes nothing
    assert level(warm, None, (80.0, 85.0), 5.0) == warm


def run(
    ladder: Ladder, seconds: float, start: float = 0.0, slowdown: float = 1.0, **conditions
) -> list[str]:
    """Calls under one set of conditions; the reasons of the switches."""
    reasons = []
    for number in range(round(seconds / CALL_S)):
        now = start + number * CALL_S
        switch = ladder.decide(now, Conditions(**conditions))
        reasons += (
            [f"{switch.before} -> {switch.after} {switch.cause}: {switch.reason}"] if switch else []
        )
        ladder.timed(now, COSTS[ladder.rung] * slowdown)
    return reasons


def test_every_reason_by_hand():
    ladder = Ladder(CONFIG, COSTS)
    assert run(ladder, 5) == []
    assert run(ladder, 5, 10, slowdown=2) == ["0 -> 1 deadline: a call took 400 of 300 ms for 1 s"]
    assert run(ladder, 5, 15) == []  # it would fit again, and is barred
    assert run(ladder, 5, 30) == [
        "1 -> 0 motion: fine motion; a call is expected to take 200 of 300 ms"
    ]
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
        kinds=KINDS,
        instruction="go",
        valid_rows=len(rows),
        produced_ns=time_ns,
        frame_sequence=0,
        seed=(0,),
    )


def test_fine_is_slow_or_near_the_gripper():
    phase = Phase(SchedulerConfig().phase, KINDS)
    assert phase.fine(0)  # nothing is known yet
    phase.receive(planned([(0.04, 1.0)] * 8))
    assert not phase.fine(0)
    phase.receive(planned([(0.01, 1.0)] * 8))
    assert phase.fine(0)
    phase.receive(planned([(0.04, 1.0)] * 7 + [(0.04, 0.0)]))  # closes after 1.4 s
    assert not phase.fine(0) and phase.fine(NS_PER_S) and not phase.fine(3 * NS_PER_S)
    phase.receive(planned([(0.04, 0.0)] * 8, time_ns=2 * NS_PER_S))  # has closed
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
        self.name = name
        self.seconds = seconds
        self.calls = 0
        self.actions = np.full((8, 7), name)
        self.milliseconds = {"total": 0.0}

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> Slow:
        self.calls += 1
        return self


def test_a_refused_picture_breaks_the_chain_of_guidance():
    scheduler = InferenceScheduler(
        {"only": Slow(0.0, 0.1)}, SchedulerConfig(rtc=RtcConfig(enabled=True))
    )
    task = Task(time_ns=0, episode=1, instruction="go", started_ns=0)
    told = []
    for call in range(3):
        frame = Frame("front", monotonic_ns(), np.zeros((4, 4, 3), np.uint8))
        about = scheduler.run(
            task, one_image(frame.image, "go"), frame.time_ns, (call,), Telemetry("policy")
        ).about
        assert about.keys() == {"guidance"}, "there is no ladder"
        told.append(about["guidance"] is not None)
        scheduler.published(planned([(0.01, 1.0)] * 8, frame.time_ns))
        if call == 1:
            scheduler.forget()
    assert told == [False, True, False]


def test_the_thinker_changes_rungs_with_its_board_and_says_why():
    now = [0]
    board = [Board(40.0)]
    top = Slow(0.0, 0.1)
    bottom = Slow(0.01, 0.05)
    config = SchedulerConfig(ladder=LadderConfig(hot_c=80.0, dwell_s=1.0))
    scheduler = InferenceScheduler(
        {"top": top, "bottom": bottom},
        config,
        costs_s=(0.1, 0.05),
        sense=lambda: board[0],
        now_ns=lambda: now[0],
    )
    telemetry = Telemetry("policy")
    told = []
    task = Task(time_ns=0, episode=1, instruction="go", started_ns=0)
    for call in range(12):
        board[0] = Board(90.0 if 4 <= call < 8 else 40.0)
        frame = Frame("front", now[0], np.zeros((4, 4, 3), np.uint8))
        thought = scheduler.run(
            task, one_image(frame.image, "go"), frame.time_ns, (call,), telemetry
        )
        told.append(thought.about["rung"])
        now[0] += NS_PER_S
    assert told == ["top"] * 4 + ["bottom"] * 4 + ["top"] * 4
    assert (top.calls, bottom.calls) == (8, 4)
    assert (telemetry.counters["rung_switches"], telemetry.counters["rung_by_heat"]) == (2, 1)
    assert telemetry.values == {"rung": 0.0, "temperature_c": 40.0}


# Real bundles in the real loop, over real sockets

LIMITS = Limits((-0.05,) * 6 + (0.0,), (0.05,) * 6 + (1.0,))
FLIPS = 40
FLIP_S = 0.1


def memory_mib() -> float:
    """What this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def late_share(before: dict[str, int], after: dict[str, int]) -> float:
    """Of the control ticks between two reports, how many began late."""
    return (after["late"] - before["late"]) / (after["ticks"] - before["ticks"])


class Stage:
    """Everything around policy and control: a camera, a task, a robot; and a board that can be
    heated.
    """

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        says = ("front/color", "task", "robot/state")
        self._says = {name: stack.enter_context(Publisher(run_dir, topic(name))) for name in says}
        # a slow machine must not drop any here
        every = replace(topic("chunk"), depth=1024, high_water=1024)
        self.hears = stack.enter_context(
            Subscriber(run_dir, [every, topic("control/report"), topic("command")])
        )
        self.position = np.zeros(6)
        self.board = Board(40.0)
        self.chunks: list[ActionChunk] = []
        self._began = monotonic_ns()

    def live(self, seconds: float) -> None:
        """Speak at 50 Hz, and keep the chunks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = monotonic_ns()
            self._says["front/color"].send(
                Frame("front", now, np.full((8, 8, 3), now // 10**7 % 256, np.uint8))
            )
            task = Task(
                time_ns=now, episode=1, instruction="pick up the red cube", started_ns=self._began
            )
            self._says["task"].send(task)
            state = JointState(time_ns=now, position=tuple(self.position.tolist()), gripper=1.0)
            self._says["robot/state"].send(state)
            self.hears.update(0.02)
            for command in self.hears["command"].fresh:
                self.position += (
                    np.array(command.action[:6]) if isinstance(command, Command) else 0.0
                )
            self.chunks += [m for m in self.hears["chunk"].fresh if isinstance(m, ActionChunk)]

    def control(self) -> Report:
        """The newest report."""
        message = self.hears["control/report"].message
        assert isinstance(message, Report)
        return message


@contextmanager
def system(run_dir: Path, stage: Stage, config: PolicyConfig) -> Iterator[Telemetry]:
    """`control` as it is, and the policy's loop with the stage's board as its sensor, each in a
    thread.
    """
    stop = threading.Event()
    telemetry = Telemetry("policy")
    policies = load_rungs(config)
    costs_s = [warm_up(policy, config.rtc.enabled) for policy in policies.values()]
    scheduler = InferenceScheduler(
        policies, config.thought, costs_s=costs_s, kinds=KINDS, sense=lambda: stage.board
    )
    with ExitStack() as stack:
        inputs = stack.enter_context(
            Subscriber(run_dir, [topic(n) for n in ("front/color", "task", "robot/state")])
        )
        chunks = stack.enter_context(Publisher(run_dir, topic("chunk")))
        loop = PolicyLoop(
            scheduler, inputs, chunks, telemetry, meaning=ActionMeaning(KINDS, 5.0), config=config
        )

        def think_on() -> None:
            while not stop.is_set():
                loop.step()

        threads = [
            threading.Thread(target=think_on),
            threading.Thread(
                target=control.run, args=(ControlConfig(LIMITS, hz=5, state_s=5.0), run_dir, stop)
            ),
        ]
        for thread in threads:
            thread.start()
        try:
            yield telemetry
        finally:
            stop.set()
            for thread in threads:
                thread.join(5)


def test_chunks_keep_coming_while_rungs_change(tmp_path, monkeypatch):
    monkeypatch.setattr("trimvla.runtime.inference.scheduler.SENSE_NS", 0)
    gains = {"top": 1.0, "bottom": 0.5}
    bundles = tuple(
        str(write_bundle(tmp_path / name, gain=gain, guided=True)) for name, gain in gains.items()
    )
    ladder = LadderConfig(deadline_s=5.0, dwell_s=FLIP_S / 4, hot_c=80.0)
    config = PolicyConfig(
        rungs=bundles, ladder=ladder, rtc=RtcConfig(enabled=True), max_hz=50, valid_rows=12
    )
    with ExitStack() as stack:
        stage = Stage(tmp_path, stack)
        telemetry = stack.enter_context(system(tmp_path, stage, config))
        while not stage.chunks or not isinstance(stage.hears["control/report"].message, Report):
            stage.live(0.2)
        stage.live(0.6)
        start = stage.control().counters
        stage.live(FLIPS * FLIP_S / 2)
        held = memory_mib()
        before = stage.control().counters
        stage.chunks.clear()
        for flip in range(FLIPS):
            stage.board = Board(90.0 if flip % 2 == 0 else 40.0)
            stage.live(FLIP_S)
        stage.live(0.6)  # for the last report
        after = stage.control().counters
        grown = memory_mib() - held
    told = stage.chunks
    changes = [(a, b) for a, b in pairwise(told) if a.rung != b.rung]
    assert {chunk.rung for chunk in told} == set(bundles) and len(changes) >= FLIPS // 2
    assert (
        telemetry.counters["rung_switches"] >= FLIPS // 2
        and telemetry.counters["rung_by_heat"] >= FLIPS // 4
    )
    assert all(chunk.guidance is not None and chunk.guidance.frozen >= 1 for chunk in told)
    assert all("hot" in chunk.rung_reason for chunk in told if chunk.rung == bundles[1])
    # the next chunk, and none was left out
    assert all(b.sequence == a.sequence + 1 for a, b in changes)
    assert after.get("holds", 0) == before.get("holds", 0), (
        "a switch left the robot without an action"
    )
    still = late_share(start, before)
    moved = late_share(before, after)
    assert moved <= still + 0.2, (
        f"of the ticks {still:.2f} were late on one rung, {moved:.2f} while rungs changed"
    )
    print(f"{len(changes)} changes; late {still:.3f} -> {moved:.3f}; {grown:+.2f} MiB")
    assert grown < 8, f"{grown:.1f} MiB more after {len(changes)} switches"


def test_rungs_of_different_robots_are_refused(tmp_path):
    top = write_bundle(tmp_path / "top")
    other = write_bundle(tmp_path / "other")
    made = manifest.load(other)
    slower = msgspec.structs.replace(made.action, control_hz=3.0)
    manifest.write(other, msgspec.structs.replace(made, action=slower))
    with pytest.raises(
        ConfigError, match=r"rungs: 'action.control_hz' is 5.0 in '.*top', got 3.0 in '.*other'"
    ):
        load_rungs(PolicyConfig(rungs=(str(top), str(other))))
