"""A lost device ends the policy's process, which comes back; one bad call costs one image;
nothing else goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.groot_client import GrootClient
from tests.test_supervisor import wait_until
from tests.tiny_bundle import write_bundle
from trimvla.launch import cli
from trimvla.launch.system.setup.programs import programs
from trimvla.launch.system.supervisor import Supervisor
from trimvla.launch.verbs import serve
from trimvla.runtime.backends.failures import FailureStreak, call_failure
from trimvla.runtime.bus.messages import JointState, Report, Task
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.errors import (
    BackendError,
    BackendUnavailableError,
    ObservationError,
    PromptError,
    StaleError,
)
from trimvla.runtime.inference.policy import Policy, PolicyResult
from trimvla.runtime.preprocess.observation import Observation
from trimvla.sim.robots.faults import Fault, write_faults

HOUR_NS = 3600 * NS_PER_S


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=orin",
            True,
        ),
        ("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR ; GPU=0", True),
        ("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0", True),
        ("CUDA failure 999: unknown error", True),
        ("CUDA failure 2: out of memory", False),
        (
            (
                "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of"
                " size 1073741824"
            ),
            False,
        ),
        (
            (
                "Non-zero status code returned while running Gather node. indices element out of"
                " data bounds"
            ),
            False,
        ),
    ],
)
def test_what_libraries_say_of_their_device(words: str, gone: bool) -> None:
    error = call_failure("onnxruntime", RuntimeError(words))
    assert isinstance(error, BackendError)
    assert isinstance(error, BackendUnavailableError) is gone
    assert str(error) == f"onnxruntime: {words}"


def test_a_streak_ends_after_so_many_calls_or_so_long() -> None:
    bad = BackendError("bad")
    streak = FailureStreak(most=5, longest_s=10.0)
    for _ in range(4):
        streak.add(bad, 0)
    streak.end()
    for _ in range(4):
        streak.add(bad, 0)
    with pytest.raises(
        BackendUnavailableError, match=r"got none from 5 calls in 0\.0 s; the last one: bad"
    ):
        streak.add(bad, 0)
    slow = FailureStreak(most=50, longest_s=10.0)
    slow.add(bad, 0)
    slow.add(bad, 20 * NS_PER_S)
    with pytest.raises(BackendUnavailableError, match=r"3 calls in 21\.0 s"):
        slow.add(bad, 21 * NS_PER_S)


def test_old_pictures_and_long_sentences_are_no_failures_of_the_backend() -> None:
    streak = FailureStreak(most=2)
    for error in (StaleError("old"), ObservationError("none"), PromptError("too long")) * 100:
        streak.add(error, HOUR_NS)
    with pytest.raises(BackendUnavailableError, match="gone"):
        streak.add(BackendUnavailableError("gone"), 0)


def test_a_graph_that_fails_is_one_bad_call(tmp_path: Path) -> None:
    """A real session: an index outside of its table."""
    from trimvla.runtime.backends.ort_runner import OrtRunner
    from trimvla.runtime.bundle.manifest import StageSpec, TensorSpec

    ids = TensorSpec("ids", "int64", (1,))
    out = TensorSpec("out", "float32", (1, 2))
    table = onnx.numpy_helper.from_array(np.zeros((3, 2), np.float32), "table")
    values = [
        helper.make_tensor_value_info(spec.name, kind, list(spec.shape))
        for spec, kind in ((ids, onnx.TensorProto.INT64), (out, onnx.TensorProto.FLOAT))
    ]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["out"])]
    graph = helper.make_graph(nodes, "g", [values[0]], [values[1]], [table])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        tmp_path / "g.onnx",
    )
    runner = OrtRunner(tmp_path / "g.onnx", StageSpec("g.onnx", (ids,), (out,)))
    with pytest.raises(BackendError, match=r"onnxruntime: .*Gather") as caught:
        runner.run({"ids": np.array([7])})
    assert not isinstance(caught.value, BackendUnavailableError)
    assert runner.run({"ids": np.array([2])})["out"].shape == (1, 2), "the next call works"


class World:
    """A camera and a policy under a supervisor, with a task that began long ago and a robot that
    stands still.
    """

    def __init__(self, run_dir: Path, *, camera: bool = True, **policy: object) -> None:
        self.run_dir = run_dir
        sections = {
            "policy": {"process": "faulty-policy", "stand_in_ms": 1.0, "max_hz": 20.0, **policy}
        }
        if camera:
            sections["camera-front"] = {"process": "faulty-camera", "name": "front", "hz": 20.0}
        self.programs = programs(sections, run_dir)

    @contextmanager
    def running(self) -> Iterator[World]:
        with (
            Supervisor(self.programs, self.run_dir) as self.group,
            Publisher(self.run_dir, topic("task")) as self._tasks,
            Publisher(self.run_dir, topic("robot/state")) as self._states,
            Subscriber(self.run_dir, [topic(report("policy")), topic("chunk")]) as self._hears,
        ):
            yield self

    def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Whether it becomes true while the system is looked after and has its task."""

        def turn() -> bool:
            now = monotonic_ns()
            long_ago = max(0, now - HOUR_NS)
            self._tasks.send(
                Task(
                    time_ns=now, episode=1, instruction="pick up the red cube", started_ns=long_ago
                )
            )
            self._states.send(JointState(time_ns=now, position=(0.0,) * 6, gripper=1.0))
            self._hears.update(0.02)
            self.group.check()
            return condition()

        return wait_until(turn, timeout_s)

    def is_well(self) -> bool:
        """Whether the policy acts and the supervisor knows; it listens for itself."""
        return self.state == "running" and not self.group.unwell

    @property
    def state(self) -> str:
        message = self._hears[report("policy")].message
        return message.state if isinstance(message, Report) else ""


@pytest.mark.parametrize(
    ("kind", "words"),
    [("lost", "error: onnxruntime: CUDA failure 700"), ("fail", "error: expected an action chunk")],
)
def test_a_policy_that_cannot_act_any_more_ends_and_comes_back(
    kind: str, words: str, tmp_path: Path
) -> None:
    with World(tmp_path).running() as world:
        assert world.until(world.is_well), "the supervisor, too, has heard that all are ready"
        write_faults(tmp_path, {"policy": Fault(kind)})  # pyright: ignore[reportArgumentType]
        assert world.until(lambda: "ended" in world.group.unwell), "the robot is told to hold"
        assert f"process 'policy' ended with status 1: {words}" in world.group.unwell
        write_faults(tmp_path, {})
        assert world.until(world.is_well)


def test_a_young_process_waits_for_its_camera(tmp_path: Path) -> None:
    """The task began an hour ago; the camera comes a while after the policy, and that is soon
    enough.
    """
    with World(tmp_path, camera=False, camera_timeout_s=30.0).running() as world:
        assert world.until(lambda: world.state == "idle")
        asked_s = time.monotonic()
        assert world.until(lambda: time.monotonic() - asked_s > 1.0)
        assert not world.group.unwell
        assert (
            world.group.posts[0].child is not None and world.group.posts[0].child.status() is None
        )


class Lost:
    """A policy whose device goes with the second call, as `Policy` would tell it."""

    def __init__(self, policy: Policy) -> None:
        self.manifest = policy.manifest
        self._policy = policy
        self._calls = 0

    def infer(self, observation: Observation, **options: object) -> PolicyResult:
        self._calls += 1
        if self._calls > 1:
            raise call_failure(
                "onnxruntime", RuntimeError("CUDA failure 700: an illegal memory access")
            )
        return self._policy.infer(observation, **options)  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        self._policy.close()


def test_a_server_whose_device_is_lost_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first call warms up; the first question gets the error, and the verb ends with it instead
    of serving on.
    """
    bundle = write_bundle(tmp_path / "tiny")
    policy = Policy.load(bundle)
    monkeypatch.setattr(Policy, "load", lambda *arguments, **options: Lost(policy))
    asked: list[threading.Thread] = []

    def ask(endpoint: str) -> None:
        with GrootClient(endpoint) as client, suppress(Exception):
            client.get_action(
                {
                    "video": {"front": np.zeros((1, 1, 8, 8, 3), np.uint8)},
                    "language": {"task": [["red"]]},
                }
            )

    def listen_and_ask(*arguments):
        places = listen(*arguments)
        asked.append(threading.Thread(target=ask, args=(places["groot"],)))
        asked[0].start()
        return places

    listen = serve.open_servers
    monkeypatch.setattr(serve, "open_servers", listen_and_ask)
    status = cli.main(
        ["serve", str(bundle), "--zmq", "0", "--websocket", "None", "--seconds", "60"]
    )
    asked[0].join(30)
    assert status == 1
    assert "error: onnxruntime: CUDA failure 700" in capsys.readouterr().err
