"""Cameras that freeze, lag or disagree: what is measured, what is refused, and what control makes
of it.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_bundle import write_bundle

from trimvla.runtime.bundle.action_meaning import ActionMeaning
from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState, Refusal, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.chunks.chunk_queue import ChunkQueue, Due, QueueConfig
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, monotonic_ns
from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import ConfigError, FrozenError, SkewError, StaleError
from trimvla.runtime.inference.frozen_frames import Still, Stills
from trimvla.runtime.inference.observation import AgeBudget, join
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_loop import PolicyLoop

START = 10 * NS_PER_S
MEANING = ActionMeaning(("delta",) * 6 + ("gripper",), 5.0)
TASK = Task(time_ns=START, episode=1, instruction="pick up the red cube", started_ns=START)
LIMITS = Limits((-0.05,), (0.05,))


def at(milliseconds: float) -> int:
    return START + round(milliseconds * NS_PER_MS)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def seen(ms: float, seed: int = 0, camera: str = "front", sequence: int | None = None) -> Frame:
    return Frame(camera, at(ms), picture(seed), sequence=int(ms) if sequence is None else sequence)


def robot(ms: float, x: float = 0.0) -> JointState:
    return JointState(time_ns=at(ms), position=(x, 0.0), gripper=1.0)


def test_every_camera_has_its_own_age():
    budget = AgeBudget(frame_s=0.3, cameras={"wrist": 0.05}, skew_s=None)
    frames = {"front": seen(100), "wrist": seen(300, camera="wrist")}
    assert join(at(340), frames, TASK, None, budget).time_ns == at(100)
    with pytest.raises(StaleError, match="at most 50 ms of age for 'wrist/color', got 60 ms"):
        join(at(360), frames, TASK, None, budget)
    with pytest.raises(StaleError, match="at most 300 ms of age for 'front/color', got 301 ms"):
        join(at(401), {**frames, "wrist": seen(400, camera="wrist")}, TASK, None, budget)


def test_the_set_has_an_age_and_a_skew():
    frames = {"front": seen(100), "wrist": seen(400, camera="wrist")}
    with pytest.raises(
        SkewError, match="at most 100 ms between 'front/color' and 'wrist/color', got 300 ms"
    ):
        join(at(410), frames, TASK)
    with pytest.raises(
        StaleError, match="at most 200 ms of age for all images together, got 310 ms from 'front"
    ):
        join(at(410), frames, TASK, None, AgeBudget(set_s=0.2, skew_s=None))


def stills(
    camera: str = "front", same: Still | None = None, alike: Still | None = None
) -> dict[str, Stills]:
    return {camera: Stills(same or Still(at(0)), alike or Still(at(0)))}


def test_a_frozen_camera_is_refused():
    budget = AgeBudget(frozen_s=0.2)
    frame = {"front": seen(300)}
    assert join(at(310), frame, TASK, None, budget, stills=stills(same=Still(at(100), 2)))
    with pytest.raises(
        FrozenError, match=r"new pixels on 'front/color', got the same for 201 ms \(3 images\)"
    ) as got:
        join(at(310), frame, TASK, None, budget, stills=stills(same=Still(at(99), 2)))
    assert got.value.since_ns == at(99)
    moved = stills(same=Still(at(100), 2, 0.05))
    with pytest.raises(FrozenError, match=r"the same for 200 ms while the robot moved by 0\.05"):
        join(at(310), frame, TASK, None, AgeBudget(), stills=moved)
    assert join(at(310), frame, TASK, None, AgeBudget(frozen_moved=None), stills=moved)
    late = stills(same=Still(at(100), 1, 0.05))
    assert join(at(310), frame, TASK, None, AgeBudget(), stills=late), "one may be late"


def test_a_camera_that_shows_the_same_in_other_pixels_is_refused_once_the_robot_moved():
    frame = {"front": seen(300)}
    alike = stills(alike=Still(at(100), 2, 0.2))
    with pytest.raises(
        FrozenError,
        match=r"of the motion on 'front/color', .* 200 ms while the robot moved by 0\.2",
    ):
        join(at(310), frame, TASK, None, AgeBudget(), stills=alike)
    assert join(at(310), frame, TASK, None, AgeBudget(frozen_alike=None), stills=alike)
    assert join(
        at(310), frame, TASK, None, AgeBudget(frozen_s=0.1), stills=stills(alike=Still(at(100), 9))
    )


@pytest.mark.parametrize(
    "fields", [{"frame_s": 0.0}, {"cameras": {"a": -1.0}}, {"skew_s": 0.0}, {"frozen_s": -1.0}]
)
def test_budgets_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        AgeBudget(**fields)


def chunk(ms: float, rows: int = 50, x: float = 0.01) -> ActionChunk:
    return ActionChunk(
        sequence=int(ms),
        time_ns=at(ms),
        episode=1,
        actions=((x,),) * rows,
        control_hz=10,
        kinds=("delta",),
        instruction=TASK.instruction,
        valid_rows=rows,
        produced_ns=at(ms),
        frame_sequence=0,
        seed=(0,),
    )


def test_no_chunk_outlives_the_age_of_its_picture():
    queue = ChunkQueue(QueueConfig(max_age_s=0.5))
    queue.push(chunk(0), at(10))
    assert isinstance(queue.due(at(500)), Due)
    assert queue.due(at(501)) == "expected an image of at most 500 ms, got one of 501 ms"
    voters = ChunkQueue(QueueConfig(mode="ensemble", votes=2, max_age_s=0.5))
    voters.push(chunk(0), at(10))
    voters.push(chunk(300), at(310))
    due = [voters.due(at(ms)) for ms in (400, 600)]
    assert [d.voters for d in due if isinstance(d, Due)] == [2, 1]


def test_a_frozen_camera_stops_what_was_made_from_its_pictures():
    controller = Controller(ControlConfig(LIMITS, ("delta",), hz=10))

    def decide(ms: float, made: ActionChunk, refusal: Refusal | None = None) -> tuple[str, str]:
        inputs = Inputs(task=TASK, robot=robot(ms), chunk=made, refusal=refusal)
        decision = controller.decide(at(ms), inputs)
        return decision.state, decision.reason

    stale = Refusal(time_ns=at(250), episode=1, kind="stale", reason="late")
    frozen = msgspec.structs.replace(stale, kind="frozen", time_ns=at(450), since_ns=at(100))
    assert decide(100, chunk(50))[0] == "running"
    assert decide(300, chunk(200), stale)[0] == "running", (
        "what is merely late is bounded by its age"
    )
    assert decide(500, chunk(200), frozen) == ("hold", "no chunk yet; refused: late")
    assert decide(600, chunk(200), stale)[0] == "hold", "what was withdrawn stays so"
    assert decide(700, chunk(650), stale)[0] == "running"


def test_the_robots_own_word_has_an_age():
    controller = Controller(ControlConfig(LIMITS, ("delta",), hz=10, state_s=0.2))

    def reason(state: JointState | None) -> str:
        return controller.decide(at(500), Inputs(task=TASK, robot=state, chunk=chunk(450))).reason

    assert reason(robot(290)) == "expected at most 200 ms of age for 'robot/state', got 210 ms"
    assert reason(robot(700)) == "expected a past time for 'robot/state', got one 200 ms ahead"
    assert reason(None) == "robot/state is silent"
    assert reason(robot(550)) == "", "a late tick may know more than it was planned for"


def test_the_policy_publishes_what_it_refuses(tmp_path: Path):
    budget = AgeBudget(frame_s=5.0, skew_s=5.0, frozen_s=0.05)
    config = PolicyConfig(max_hz=50.0, more_cameras=("wrist",), budget=budget)
    names = ["front/color", "wrist/color", "task", "robot/state"]
    telemetry = Telemetry("policy")
    heard: dict[str, Refusal] = {}
    with (
        closing(Policy.load(write_bundle(tmp_path / "bundle"))) as policy,
        Subscriber(tmp_path, [topic(name) for name in names]) as inputs,
        Subscriber(tmp_path, [topic("refusal")]) as hears,
        Publisher(tmp_path, topic("chunk")) as chunks,
        Publisher(tmp_path, topic("refusal")) as refusals,
        Publisher(tmp_path, topic("front/color")) as front,
        Publisher(tmp_path, topic("wrist/color")) as wrist,
        Publisher(tmp_path, topic("task")) as tasks,
    ):
        loop = PolicyLoop(
            policy, inputs, chunks, telemetry, meaning=MEANING, config=config, refusals=refusals
        )
        started = monotonic_ns()
        deadline = time.monotonic() + 60
        while not {"other", "frozen"} <= set(heard) and time.monotonic() < deadline:
            now = monotonic_ns()
            tasks.send(Task(time_ns=now, episode=1, instruction="go", started_ns=started))
            front.send(Frame("front", now, picture(front.sent)))
            if "other" in heard:  # before, nothing has come from the second camera
                lives = not telemetry.counters.get("frames_used")
                wrist.send(Frame("wrist", now, picture(wrist.sent if lives else 0)))
            loop.step()
            hears.update(0.01)
            if isinstance(newest := hears["refusal"].message, Refusal):
                heard[newest.kind] = newest
    message = heard["frozen"]
    assert (
        "new pixels on 'wrist/color', got the same for" in message.reason
        and message.since_ns is not None
    )
    assert telemetry.counters["refused_frozen"] >= 1 and telemetry.state == "refusing"
    assert telemetry.counters["frames_used"] >= 1, "the second camera was well at first"


def test_a_camera_smaller_than_the_policy_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    telemetry = Telemetry("policy")
    config = PolicyConfig(max_hz=50.0, budget=AgeBudget(frame_s=5.0))
    with (
        closing(Policy.load(write_bundle(tmp_path / "bundle"))) as policy,
        Subscriber(
            tmp_path, [topic(name) for name in ("front/color", "task", "robot/state")]
        ) as inputs,
        Publisher(tmp_path, topic("chunk")) as chunks,
        Publisher(tmp_path, topic("front/color")) as front,
        Publisher(tmp_path, topic("task")) as tasks,
    ):
        loop = PolicyLoop(
            policy, inputs, chunks, telemetry, meaning=MEANING, config=config, size=(1000, 1000)
        )
        started = monotonic_ns()
        deadline = time.monotonic() + 60
        while telemetry.counters["frames_used"] < 3 and time.monotonic() < deadline:
            now = monotonic_ns()
            tasks.send(Task(time_ns=now, episode=1, instruction="go", started_ns=started))
            front.send(Frame("front", now, picture(front.sent)))
            loop.step()
    assert telemetry.counters["frames_used"] >= 3, "small images are acted on"
    warnings = [
        record.getMessage() for record in caplog.records if "smaller" in record.getMessage()
    ]
    assert (
        len(warnings) == 1
        and "camera 'front'" in warnings[0]
        and "the policy's, 1000 x 1000" in warnings[0]
    )
