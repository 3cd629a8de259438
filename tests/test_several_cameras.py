"""Two cameras and a state, end to end: processes and sockets, the recording, the servers; the same
actions each way, and what does not fit is refused before anything starts.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from tests import act_policy, several_cameras_bundle, shared_exports
from tests.groot_client import GrootClient
from tests.several_cameras_bundle import CAMERAS, STATE_NAMES
from trimvla.launch import cli
from trimvla.launch.bench.socket_layer import socket_policy
from trimvla.launch.system.client import SystemClient, new_task
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.setup.programs import check_system, programs
from trimvla.launch.system.setup.sections import cameras, configure, read_system
from trimvla.launch.system.supervisor import ProcessEndedError, Supervisor
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bus import wire
from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState, Task
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.drivers.driver import Driver, DriverConfig
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.errors import ConfigError, ObservationError
from trimvla.runtime.inference.observation import JoinedObservation
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.robot_inputs import RobotInputs
from trimvla.runtime.inference.rungs import robot_inputs
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.record.recording import Recording, RecordingWriter
from trimvla.runtime.record.replay import replay
from trimvla.runtime.servers.groot_protocol import modality_config
from trimvla.runtime.servers.packing import pack, unpack
from trimvla.runtime.servers.service import describe

CHUNKS = 4
TIMEOUT_S = 60.0
NEAR = 1e-4
SYSTEM = """
[camera-front]
process = "camera"
name = "front"
kind = "synthetic"
width = 40
height = 30
codec = "jpeg"

[camera-wrist]
process = "camera"
name = "wrist"
kind = "synthetic"
width = 32
height = 48
codec = "png"

[policy]
bundle = '{bundle}'
cameras = {{ {first} = "front", {second} = "wrist" }}
budget = {{ frame_s = 60.0, skew_s = 60.0 }}
seed = 7
"""


@dataclass(frozen=True)
class Robot:
    """A bundle, an instruction that it knows, and the state that it reads."""

    bundle: Path
    instruction: str
    cameras: tuple[str, ...]
    state: np.ndarray
    """float[dim]."""
    names: tuple[str, ...] = ()
    """Of the positions."""
    gripper: bool = False
    """The state's last number is the gripper's."""
    ordered: bool = True
    """Which camera shows what counts: not for ACT, whose cameras have the same positions."""

    def message(self, step: int) -> JointState:
        """Where it is at a step."""
        values = [float(value) for value in self.state * (1 + 0.05 * (step % 10))]
        position = values[:-1] if self.gripper else values
        return JointState(
            time_ns=monotonic_ns(), position=tuple(position), gripper=values[-1], names=self.names
        )

    def system(self, home: Path) -> Path:
        """Its TOML, written to `home`."""
        first, second = self.cameras
        path = home / "system.toml"
        path.write_text(SYSTEM.format(bundle=self.bundle, first=first, second=second))
        return path


def tiny_robot(home: Path) -> Robot:
    state = np.array([0.3, -0.2, 0.5, 0.1, 0.6])
    bundle = several_cameras_bundle.write_bundle(home / "two")
    names = STATE_NAMES[:-1]
    return Robot(bundle, "stack the red cube", CAMERAS, state, names, gripper=True)


def smolvla_robot(shared: Path, factory: pytest.TempPathFactory) -> Robot:
    folder = shared / "fixtures" / "smolvla_tiny_a"
    if not folder.is_dir():
        pytest.skip("the reference fixture smolvla_tiny_a is not here")
    bundle = shared_exports.exported(folder, factory)
    with np.load(folder / "reference.npz") as stored:
        state = stored["in/observation.state"].astype(np.float64)
    return Robot(bundle, "put the green block on the blue plate", ("camera1", "camera2"), state)


def act_robot(home: Path) -> Robot:
    """Images that are no squares, no instruction, no noise."""
    bundle = home / "act"
    folder = act_policy.write_checkpoint(home / "folder")
    assert not cli.main(["export", str(folder), "--out", str(bundle)])
    state = np.array([0.3, -0.2, 0.5, 0.1, 0.6, -0.4])
    cameras = act_policy.TINY.cameras
    return Robot(bundle, "words that nobody reads", cameras, state, ordered=False)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("smolvla", "act")]


@pytest.fixture(scope="module", params=["tiny", *SLOW])
def robot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Robot:
    if request.param == "tiny":
        return tiny_robot(tmp_path_factory.mktemp(request.param))
    if request.param == "act":
        return act_robot(tmp_path_factory.mktemp(request.param))
    return smolvla_robot(request.getfixturevalue("shared_dir"), tmp_path_factory)


@pytest.fixture(scope="module")
def policy(robot: Robot) -> Iterator[Policy]:
    policy = Policy.load(robot.bundle, threads=1)
    yield policy
    policy.close()


@pytest.fixture(scope="module")
def run_file(robot: Robot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trimvla run` with two camera processes and a robot that moves, until there were chunks."""
    home = tmp_path_factory.mktemp("run")
    words = ["run", str(robot.system(home)), "--json", "--task", robot.instruction]
    words += ["--record", str(home / "run.mcap"), "--run-dir", str(home)]
    with (
        SystemClient(home, sends=["robot/state"], receives=["chunk"]) as client,
        subprocess.Popen(
            [sys.executable, "-m", "trimvla.launch.cli", *words], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        deadline = time.monotonic() + TIMEOUT_S
        step = 0
        while (
            client["chunk"].received < CHUNKS
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            client.send("robot/state", robot.message(step))
            client.receive(0.05)
            step += 1
        process.send_signal(signal.SIGINT)
        result = json.loads(process.communicate(timeout=60)[0].splitlines()[-1])
    assert result["ok"], result
    return home / "run.mcap"


@dataclass(frozen=True)
class Call:
    """A recorded chunk, and what the policy process must have seen."""

    chunk: ActionChunk
    observation: Observation


@pytest.fixture(scope="module")
def calls(run_file: Path) -> list[Call]:
    """Put together here from the recorded images and states, not by the replay."""
    messages = [entry.message for entry in Recording(run_file)]
    frames = {
        (frame.camera, frame.sequence): frame for frame in messages if isinstance(frame, Frame)
    }
    states = {
        (*message.position, message.gripper)[: len(message.position) + len(message.names[:1])]
        for message in messages
        if isinstance(message, JointState)
    }
    found: list[Call] = []
    for chunk in (message for message in messages if isinstance(message, ActionChunk)):
        keys = {one.view: (one.camera, one.sequence) for one in chunk.frames}
        if all(key in frames for key in keys.values()):
            assert chunk.state in states
            images = {view: frames[key].image for view, key in keys.items()}
            seen = Observation(images, chunk.instruction, np.array(chunk.state))
            found.append(Call(chunk, seen))
    assert found
    return found


def test_the_processes_act_as_the_policy_does(
    robot: Robot, policy: Policy, calls: list[Call]
) -> None:
    for call in calls:
        views = {one.view: one.camera for one in call.chunk.frames}
        assert views == dict(zip(robot.cameras, ("front", "wrist"), strict=True))
        expected = policy.infer(call.observation, seed=call.chunk.seed).actions
        assert np.array_equal(np.array(call.chunk.actions), expected)


def test_each_camera_and_the_state_reach_the_actions(
    robot: Robot, policy: Policy, calls: list[Call]
) -> None:
    """Else the other tests would prove nothing."""
    seen = calls[0].observation
    seed = calls[0].chunk.seed
    assert seen.state is not None
    expected = policy.infer(seen, seed=seed).actions
    views = list(seen.images)
    swapped = dict(zip(views, reversed(list(seen.images.values())), strict=True))
    images = [{**seen.images, view: 255 - image} for view, image in seen.images.items()]
    for other in (
        *(Observation(one, seen.instruction, seen.state) for one in images),
        *([Observation(swapped, seen.instruction, seen.state)] if robot.ordered else []),
        Observation(seen.images, seen.instruction, seen.state * 1.5),
    ):
        assert np.abs(policy.infer(other, seed=seed).actions - expected).max() > NEAR


def test_a_replay_gives_the_same_bits(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(run_file), "--recorded-paths", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["exact"] == result["repeated"] > 0
    assert result["worst"] is None


def test_a_recorded_call_can_be_inspected(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recorded-paths", "--call", "-1", "--out", str(tmp_path / "call.png"), "--json"]
    assert cli.main(["inspect", str(run_file), *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["same_as_recorded"] is True


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, str]]:
    """`trimvla serve`: the addresses of its ZeroMQ and its websocket server."""
    words = ["serve", str(bundle), "--websocket", "0", "--zmq", "0", "--threads", "1"]
    program = [sys.executable, "-m", "trimvla.launch.cli", *words]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            text = ""
            while "Ctrl-C" not in text and (line := process.stdout.readline()):
                text += line
            groot = re.search(r"tcp://[\d.]+:\d+", text)
            openpi = re.search(r"ws://[\d.]+:\d+", text)
            assert groot and openpi, text
            yield groot.group(), openpi.group()
        finally:
            process.terminate()
            process.communicate(timeout=60)


def lerobot_keys(seen: Observation) -> dict[str, Any]:
    images = {f"observation.images.{view}": image for view, image in seen.images.items()}
    return {**images, "observation.state": seen.state, "task": seen.instruction}


def openpi_keys(seen: Observation) -> dict[str, Any]:
    images = {f"observation/{view}": image for view, image in seen.images.items()}
    return {**images, "observation/state": seen.state, "prompt": seen.instruction}


def groot_keys(seen: Observation) -> dict[str, Any]:
    assert seen.state is not None
    return {
        "video": {view: image[None, None] for view, image in seen.images.items()},
        "state": {"state": seen.state.astype(np.float32)[None, None]},
        "language": {"task": [[seen.instruction]]},
    }


def test_every_server_gives_the_same_actions(
    robot: Robot, policy: Policy, calls: list[Call]
) -> None:
    connect = pytest.importorskip("websockets.sync.client").connect
    seen = calls[-1].observation
    expected = policy.infer(seen, seed=(5,)).actions
    with serving(robot.bundle) as (zmq_address, websocket_address):
        with connect(websocket_address, max_size=None) as socket:
            assert unpack(socket.recv())["cameras"] == list(robot.cameras)
            for observation in (lerobot_keys(seen), openpi_keys(seen)):
                socket.send(pack({**observation, "seed": 5}, "openpi"))
                answer = unpack(socket.recv())
                assert np.abs(answer["actions"] - expected).max() < NEAR
        with GrootClient(zmq_address) as client:
            action, _ = client.get_action(groot_keys(seen), seed=5)
            assert np.abs(action["actions"] - expected).max() < NEAR
            keys = client.call("get_modality_config")["video"]["as_json"]["modality_keys"]
            assert keys == list(robot.cameras)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Robot:
    return tiny_robot(tmp_path_factory.mktemp("tiny"))


def test_a_client_is_told_of_cameras_and_state(tiny: Robot) -> None:
    policy = Policy.load(tiny.bundle, threads=1)
    config = modality_config(describe(policy), "")
    policy.close()
    keys = {name: part["as_json"]["modality_keys"] for name, part in config.items()}  # type: ignore[index]
    assert keys["video"] == list(CAMERAS)
    assert keys["state"] == ["state"]


ONE_OF_TWO = 'cameras={camera1="front"}'


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "policy.cameras={}",
            r"policy: policy.cameras: bundle 'two-cameras' looks through \['camera1', 'camera2'\]",
        ),
        (f"policy.{ONE_OF_TWO}", r"policy: policy.cameras: .*\['camera2'\] missing"),
        (
            'policy.cameras={camera1="front", camera2="wrist", camera3="top"}',
            r"policy: policy.cameras: .*\['camera3'\] unknown",
        ),
        ('policy.cameras={camera1="front", camera2="../wrist"}', r"names of .*'../wrist'"),
        ("policy.budget.cameras={wirst=0.2}", r"\['front', 'wrist'\] for 'budget.cameras'.*wirst"),
    ],
)
def test_cameras_that_do_not_fit_are_refused_before_anything_starts(
    setting: str,
    words: str,
    tiny: Robot,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    program = ["run", str(tiny.system(tmp_path)), "--set", setting, "--json"]
    assert cli.main([*program, "--run-dir", str(run_dir), "--seconds", "30"]) == 1
    assert re.search(words, json.loads(capsys.readouterr().out.splitlines()[-1])["error"])
    assert not list(run_dir.iterdir()), "no process was started"


def test_a_bundle_with_one_camera_refuses_two(tiny: Robot, tmp_path: Path) -> None:
    from tests import tiny_bundle

    one = tiny_bundle.write_bundle(tmp_path / "one")
    sections = read_system(tiny.system(tmp_path), [f"policy.bundle={one}"])
    with pytest.raises(ConfigError, match=r"expected the cameras \['image'\].*unknown|missing"):
        programs(sections, tmp_path)


class Arm(Driver):
    """A robot of two joints that stands still."""

    def read(self) -> tuple[tuple[float, ...], float]:
        return (0.1, 0.2), 1.0

    def write(self, action: Sequence[float]) -> None:
        """It stands still."""

    def hold(self) -> None:
        """It stands still."""


def drive_arm(config: DriverConfig, run_dir: Path, stop: threading.Event, name: str) -> None:
    """A process of one's own."""
    drive(Arm(), config, run_dir, stop, name=name)


def test_a_driver_names_the_state_that_it_publishes(tmp_path: Path) -> None:
    stop = threading.Event()
    config = DriverConfig(state_names=("x", "y"))
    thread = threading.Thread(target=drive_arm, args=(config, tmp_path, stop, "arm"))
    with SystemClient(tmp_path, receives=["robot/state"]) as client:
        thread.start()
        try:
            received = client["robot/state"]
            client.until(lambda: received.received > 0, TIMEOUT_S, "a state")
        finally:
            stop.set()
            thread.join()
        assert isinstance(received.message, JointState)
        assert received.message.names == ("x", "y")


def test_a_driver_with_more_names_than_joints_is_told(tmp_path: Path) -> None:
    config = DriverConfig(state_names=("x", "y", "z"))
    with pytest.raises(ConfigError, match=r"'state_names', \['x', 'y', 'z'\], got 2 numbers"):
        drive_arm(config, tmp_path, threading.Event(), "arm")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (STATE_NAMES, ""),
        (STATE_NAMES[:-1], ""),
        (STATE_NAMES[:-2], "arm.state_names: expected 5 numbers .* got 3, and the gripper"),
        (("y", "x", "z", "yaw"), r"arm.state_names: .*in this order, got \['y', 'x'"),
        ((*STATE_NAMES, "w"), "expected 5 numbers .* got 6"),
    ],
)
def test_the_names_of_a_drivers_state_are_checked_before_anything_starts(
    names: tuple[str, ...], words: str, tiny: Robot, tmp_path: Path
) -> None:
    sections = read_system(tiny.system(tmp_path))
    sections["arm"] = {"process": f"{__name__}:drive_arm", "state_names": list(names)}
    if not words:
        check_system(sections)
        return
    with pytest.raises(ConfigError, match=words):
        check_system(sections)


def test_the_recorder_records_what_the_policy_looks_through(tiny: Robot, tmp_path: Path) -> None:
    """Also where somebody else starts the cameras."""
    sections = read_system(tiny.system(tmp_path))
    assert cameras({"policy": sections["policy"]}) == ["front", "wrist"]


def test_a_state_that_does_not_fit_is_refused_until_it_does(tiny: Robot, tmp_path: Path) -> None:
    """Where only the first message shows it: in another order, too short, none at all; then the
    right one.
    """
    sections = read_system(tiny.system(tmp_path))
    with temporary_run_dir() as run_dir:
        group = Supervisor(programs(sections, run_dir), run_dir)
        client = SystemClient(
            run_dir,
            sends=["robot/state"],
            receives=["chunk"],
            processes=["policy"],
            check=group.check,
        )
        with client, group:
            client.begin(new_task(tiny.instruction))
            reasons = {
                "nothing has come on 'robot/state'": None,
                "in this order, got ['z', 'y', 'x', 'yaw', 'gripper.pos']": ("z", "y", "x", "yaw"),
                "expected 5 numbers of ['x', 'y', 'z', 'yaw', 'gripper.pos']": ("x", "y"),
            }
            for words, names in reasons.items():
                _publish_until(client, tiny, names, words)
            assert not client["chunk"].received
            _publish_until(client, tiny, tiny.names, "")


def _publish_until(
    client: SystemClient, robot: Robot, names: tuple[str, ...] | None, words: str
) -> None:
    """Publish a state of these names until the policy refuses it with these words; without words,
    until there is a chunk.
    """

    def turn() -> None:
        if names is not None:
            position = robot.message(0).position[: len(names)]
            state = JointState(time_ns=monotonic_ns(), position=position, gripper=0.5, names=names)
            client.send("robot/state", state)
        client.turn()

    def done() -> bool:
        if words:
            return words in client.report("policy").reason
        return client["chunk"].received > 0

    client.until(done, TIMEOUT_S, words or "a chunk", turn)


def test_a_second_camera_that_never_starts_is_an_error(tiny: Robot, tmp_path: Path) -> None:
    """As it is of the first: the process ends, and its error names the camera, which another
    program was to publish.
    """
    path = tiny.system(tmp_path)
    system, _, rest = path.read_text().partition("[camera-wrist]")
    path.write_text(system + rest[rest.index("[policy]") :])
    sections = read_system(
        path, ["policy.camera_timeout_s=1.0", 'policy.outside_cameras=["wrist"]']
    )
    words = r"camera 'wrist': expected a first image on 'wrist/color' within 1 s of the task"
    with temporary_run_dir() as run_dir, pytest.raises(ProcessEndedError, match=words):
        group = Supervisor(programs(sections, run_dir), run_dir, restart=False)
        client = SystemClient(run_dir, processes=["policy"], check=group.check)
        with client, group:
            client.until(lambda: client.report("policy").state == "idle", TIMEOUT_S, "a start")
            client.begin(new_task(tiny.instruction))
            client.wait(TIMEOUT_S)


def frame(camera: str, number: int) -> Frame:
    image = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    return Frame(camera, 1000 + number, image, number)


def acted(policy: Policy, inputs: RobotInputs, config: PolicyConfig, *frames: Frame) -> ActionChunk:
    """A chunk as the policy process makes it of these frames."""
    task = Task(time_ns=1, episode=1, instruction="stack the red cube", started_ns=1)
    state = JointState(time_ns=1, position=(0.1, 0.2, 0.3, 0.4), gripper=0.5)
    joined = JoinedObservation({one.camera: one for one in frames}, task, state, 1)
    seen = inputs.seen(joined, config)
    actions = policy.infer(seen.observation, seed=(0, 1, 2)).actions
    return ActionChunk(
        time_ns=seen.time_ns,
        episode=1,
        actions=tuple(map(tuple, actions.tolist())),
        control_hz=5.0,
        valid_rows=8,
        produced_ns=seen.time_ns + 1,
        frame_sequence=frames[0].sequence,
        seed=(0, 1, 2),
        instruction=task.instruction,
        frames=seen.frames,
        state=seen.state,
    )


def record(path: Path, frames: list[Frame], chunks: list[ActionChunk]) -> Recording:
    with path.open("wb") as stream:
        writer = RecordingWriter(stream, {})
        for name, message in (
            *((color(one.camera), one) for one in frames),
            *(("chunk", chunk) for chunk in chunks),
        ):
            row = topic(name)
            writer.add(row, message.time_ns, wire.encode(row, message))
        writer.finish()
    return Recording(path)


@pytest.mark.parametrize(
    ("optional", "views"),
    [
        (True, {"camera1": "front"}),
        (False, {"camera1": "front", "camera2": "front"}),
        (False, {"camera2": "wrist", "camera1": "front"}),
    ],
    ids=["one is left out", "one camera for both", "in another order"],
)
def test_calls_with_other_sets_of_cameras_replay(
    optional: bool, views: dict[str, str], tmp_path: Path
) -> None:
    bundle = several_cameras_bundle.write_bundle(tmp_path / "two", optional=optional)
    config = PolicyConfig(bundle=str(bundle), cameras=views)
    frames = [frame(camera, number) for number, camera in enumerate(dict.fromkeys(views.values()))]
    policy = Policy.load(bundle, threads=1)
    chunk = acted(policy, robot_inputs(config), config, *frames)
    assert [one.view for one in chunk.frames] == list(views)
    outcome = replay(record(tmp_path / "a.mcap", frames, [chunk]), policy)
    policy.close()
    assert (outcome.calls, outcome.exact, outcome.left_out) == (1, 1, {})


def test_a_rung_without_state_leaves_it_to_the_others(tiny: Robot, tmp_path: Path) -> None:
    """The best rung reads no state and the next one does: it is joined, checked and given."""
    blind = several_cameras_bundle.write_bundle(tmp_path / "blind", reads_state=False)
    views = {"camera1": "front", "camera2": "wrist"}
    config = PolicyConfig(rungs=(str(blind), str(tiny.bundle)), cameras=views)
    inputs = robot_inputs(config)
    frames = [frame("front", 0), frame("wrist", 1)]
    policy = Policy.load(tiny.bundle, threads=1)
    chunk = acted(policy, inputs, config, *frames)
    policy.close()
    assert chunk.state == (0.1, 0.2, 0.3, 0.4, 0.5)
    with pytest.raises(ObservationError, match="in this order"):
        inputs.check_state(("y", "x", "z", "yaw"))


def test_rungs_that_look_through_other_cameras_are_refused_early(
    tiny: Robot, tmp_path: Path
) -> None:
    from tests import tiny_bundle

    one = tiny_bundle.write_bundle(tmp_path / "one")
    sections = read_system(tiny.system(tmp_path))
    sections["policy"]["rungs"] = [str(tiny.bundle), str(one)]
    with pytest.raises(ConfigError, match=r"policy: rungs: 'images\.names'"):
        check_system(sections)


def test_a_benchmark_asks_the_process_with_all_cameras(tiny: Robot) -> None:
    """Layer L3 of `bench`."""
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    with socket_policy(tiny.bundle, image, tiny.instruction) as process:
        process.connect()
        assert min(process.turn(1).values()) > 0


def test_the_bundle_is_what_its_manifest_says(tiny: Robot) -> None:
    manifest = bundles.load(tiny.bundle)
    assert manifest.images.names == CAMERAS
    assert manifest.state is not None and manifest.state.names == STATE_NAMES
    configure("policy", {"bundle": str(tiny.bundle), "cameras": dict.fromkeys(CAMERAS, "front")})
