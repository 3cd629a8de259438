"""Recordings as bags of ROS 2 and back; rosbags reads what we write and writes what we read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap", reason="needs mcap, of the extra `record`")
pytest.importorskip("rosbags", reason="needs rosbags, of the extra `ros`")

from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer

from tests import ros_robot, test_recording
from tests.test_recorded_frames import TINY
from trimvla.export.streaming.placeholders import placeholder_tokenizer
from trimvla.launch import cli
from trimvla.launch.bags.from_ros import write_recording
from trimvla.launch.bags.to_ros import write_bag
from trimvla.launch.bags.topics import camera_of, image_topic
from trimvla.launch.frames.calibration import find_calibration
from trimvla.runtime.bus.messages import Frame, JointState, Message, Task
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record.recording import Recording, RecordingWriter, partial

START_NS = 1_750_000_000 * NS_PER_S
PIXELS = np.random.default_rng(5).integers(0, 256, (8, 12, 3), np.uint8)
FLAT = np.full((16, 16, 3), (200, 30, 10), np.uint8)
TYPES = {
    "/front/image_raw": "sensor_msgs/msg/Image",
    "/wrist/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/instruction": "std_msgs/msg/String",
    "/diagnostics": "std_msgs/msg/Bool",
}


def verb(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    status = cli.main(["record", *map(str, words), "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def recorded(path: Path) -> Path:
    """Every kind of message, and images in every form, one of them of unknown age."""
    unknown = Frame("front", 0, PIXELS, 9, timestamp_source="unknown")
    items = [(name, test_recording.packed(name, each)) for name, each in every().items()]
    items += [
        ("front/color", test_recording.picture(1, "raw_bgr8")),
        ("front/color", test_recording.picture(2, "raw_rgb8")),
        ("front/color", test_recording.picture(3, "jpeg")),
        ("front/color", test_recording.picture(4, "png")),
        ("front/color", test_recording.packed("front/color", unknown)),
    ]
    return test_recording.write(path, items)


def every() -> dict[str, Message]:
    return test_recording.MESSAGES


def comparable(recording: Recording) -> list[object]:
    """Every entry, its pixels as bytes."""
    found: list[object] = []
    for entry in recording:
        message = entry.message
        pixels = message.image.tobytes() if isinstance(message, Frame) else b""
        facts = (message.sequence, message.time_ns) if isinstance(message, Frame) else message
        found.append((entry.topic, entry.logged_ns, facts, pixels))
    return found


def test_a_recording_is_a_bag_and_the_same_recording_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = recorded(tmp_path / "run.mcap")
    bag = tmp_path / "bag"
    status, result = verb(capsys, source, "--ros2", bag)
    assert status == 0 and result["topics"]["/joint_states"] == 1
    assert result["topics"]["/front/image_raw"] == 3
    back = tmp_path / "back.mcap"
    status, result = verb(capsys, back, "--from-ros2", bag)
    assert status == 0 and result["restored"] and result["frames"] == 5
    assert comparable(Recording(back)) == comparable(Recording(source))
    assert Recording(back).facts == Recording(source).facts


def test_rosbags_reads_what_we_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the definitions in the bag alone: the reader has no types of its own."""
    bag = tmp_path / "bag"
    assert verb(capsys, recorded(tmp_path / "run.mcap"), "--ros2", bag)[0] == 0
    assert sorted(path.name for path in bag.iterdir()) == ["bag.mcap", "metadata.yaml"]
    seen: dict[str, list] = {}
    with AnyReader([bag]) as reader:
        for connection, logged_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            seen.setdefault(connection.topic, []).append((logged_ns, message))
    bgr, rgb, unknown = (message for _, message in seen["/front/image_raw"])
    expected = test_recording.PICTURE
    assert (bgr.encoding, rgb.encoding) == ("bgr8", "rgb8")
    assert (bgr.data.reshape(expected.shape)[..., ::-1] == expected).all()
    assert (rgb.data.reshape(expected.shape) == expected).all()
    stamp = bgr.header.stamp
    assert stamp.sec * NS_PER_S + stamp.nanosec == test_recording.OFFSET_NS + 101
    assert unknown.header.stamp.sec == 0, "an age that is not known"
    files = [message.format for _, message in seen["/front/image_raw/compressed"]]
    assert files == ["jpeg", "png"]
    ((_, state),) = seen["/joint_states"]
    assert state.name == ["joint_0", "joint_1", "gripper"]
    assert state.position.tolist() == [0.1, -0.25, 1.0]
    assert [message.data.tolist() for _, message in seen["/trimvla/command"]] == [[0.0, 1.0]]
    assert [message.data for _, message in seen["/instruction"]] == ["stack"]


def robot_bag(bag: Path, *, stamp_ns: int | None = None, images: int = 6) -> Path:
    """As a robot's own recorder writes it, in two files of a split bag."""
    bag.mkdir()
    for part in (10, 9):  # in an order in which names alone would sort wrongly
        work = bag / f"part{part}"
        with Writer(work, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {
                name: writer.add_connection(name, kind, typestore=ros_robot.STORE)
                for name, kind in TYPES.items()
            }
            for turn in range(images):
                now = START_NS + ((part - 9) * images + turn) * NS_PER_S // 10
                stamp = now - 5_000_000 if stamp_ns is None else stamp_ns
                names = ["lift", "pan"] if turn % 2 else ["pan", "lift"]
                values = [0.2, 0.1] if turn % 2 else [0.1, 0.2]
                content = {
                    "/instruction": ros_robot.text("lift" if turn else ""),
                    "/joint_states": ros_robot.joint_state(names, values, stamp),
                    "/front/image_raw": ros_robot.image(PIXELS, stamp),
                    "/wrist/image_raw/compressed": ros_robot.compressed(FLAT, stamp),
                    "/diagnostics": ros_robot.boolean(True),
                }
                for name, raw in content.items():
                    writer.write(connections[name], now, raw)
                if turn == 2:
                    broken = ros_robot.joint_state(["pan"], [0.0], stamp)
                    writer.write(connections["/joint_states"], now, broken)
        (work / f"part{part}.mcap").rename(bag / f"robot_{part}.mcap")
        (work / "metadata.yaml").rename(bag / "metadata.yaml")
        work.rmdir()
    return bag


def test_a_robots_bag_is_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.mcap"
    status, result = verb(capsys, out, "--from-ros2", robot_bag(tmp_path / "bag"))
    assert status == 0, result
    assert (result["frames"], result["unknown_age"]) == (24, 0)
    assert result["cameras"] == {
        "front": "/front/image_raw",
        "wrist": "/wrist/image_raw/compressed",
    }
    assert [count for reason, count in result["refused"].items() if "missing" in reason] == [2]
    entries = list(Recording(out))
    offset_ns = int(Recording(out).facts["utc_minus_monotonic_ns"])
    assert [entry.logged_ns for entry in entries] == sorted(entry.logged_ns for entry in entries)
    frames = [e.message for e in entries if isinstance(e.message, Frame)]
    assert all((f.image == PIXELS).all() for f in frames if f.camera == "front")
    assert all(abs(f.image.astype(int) - FLAT).max() <= 3 for f in frames if f.camera == "wrist")
    assert frames[0].time_ns + offset_ns == START_NS - 5_000_000 == frames[0].utc_ns
    states = [e.message for e in entries if isinstance(e.message, JointState)]
    assert len(states) == 12
    assert {(s.names, s.position) for s in states} == {(("pan", "lift"), (0.1, 0.2))}
    tasks = [e.message.instruction for e in entries if isinstance(e.message, Task)]
    assert set(tasks) == {"", "lift"}


def test_a_robots_bag_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(placeholder_tokenizer(TINY.prompt))
    out = tmp_path / "run.mcap"
    bag = robot_bag(tmp_path / "bag")
    words = ("--from-ros2", bag, "--cameras", "hand=/wrist/image_raw/compressed")
    status, result = verb(capsys, out, *words, "--task", "push")
    assert status == 0 and result["cameras"] == {"hand": "/wrist/image_raw/compressed"}
    data = find_calibration(out, tmp_path, TINY, tokenizer, frames=4, seed=0)
    assert len(data.images) == 4
    assert abs(data.images[0].mean(axis=(0, 1)) - FLAT[0, 0]).max() <= 3


@pytest.mark.parametrize("stamp_ns", [0, 12 * NS_PER_S])
def test_stamps_of_another_clock_are_no_age(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stamp_ns: int
) -> None:
    out = tmp_path / "run.mcap"
    bag = robot_bag(tmp_path / "bag", stamp_ns=stamp_ns, images=2)
    status, result = verb(capsys, out, "--from-ros2", bag)
    assert status == 0 and result["unknown_age"] == result["frames"] == 8
    frames = [e.message for e in Recording(out) if isinstance(e.message, Frame)]
    assert not any(frame.age_known for frame in frames)
    assert any("bag's clock" in reason for reason in result["refused"])


def test_what_is_no_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One error each, and nothing is left."""
    out = tmp_path / "run.mcap"
    sqlite = tmp_path / "sqlite"
    with Writer(sqlite, version=9) as writer:
        writer.add_connection("/estop", "std_msgs/msg/Bool", typestore=ros_robot.STORE)
    empty = tmp_path / "empty"
    with Writer(empty, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        switch = writer.add_connection("/estop", "std_msgs/msg/Bool", typestore=ros_robot.STORE)
        writer.write(switch, START_NS, ros_robot.boolean(True))
    whole = robot_bag(tmp_path / "bag", images=1)
    damaged = tmp_path / "damaged.mcap"
    raw = bytearray((whole / "robot_9.mcap").read_bytes())
    raw[len(raw) // 3] ^= 255
    damaged.write_bytes(b"\x89MCAP" + bytes(raw[100:]))
    for words, expected in (
        ((sqlite,), "rosbags-convert"),
        ((tmp_path / "none",), "rosbags-convert"),
        ((empty,), "images"),
        ((damaged,), "damaged.mcap"),
        ((whole, "--cameras", "front"), "NAME=TOPIC"),
        ((whole, "--cameras", "a b=/front/image_raw"), "a name of its own"),
        ((whole, "--run-dir", tmp_path), "without --run-dir"),
    ):
        status, result = verb(capsys, out, "--from-ros2", *words)
        assert status == 1 and expected in result["error"], result
        assert not list(tmp_path.glob("run.mcap*"))
    bag = tmp_path / "made"
    bag.mkdir()
    status, result = verb(capsys, recorded(tmp_path / "a.mcap"), "--ros2", bag)
    assert status == 1 and "expected nothing at" in result["error"]
    with (tmp_path / "b.mcap").open("wb") as stream:
        writer = RecordingWriter(stream, {})
        for name in ("a-b", "a.b"):
            frame = Frame(name, 5, PIXELS)
            writer.add(topic(f"{name}/color"), 6, test_recording.packed(f"{name}/color", frame))
        writer.finish()
    status, result = verb(capsys, tmp_path / "b.mcap", "--ros2", tmp_path / "other")
    assert status == 1 and "names of their own" in result["error"]
    assert not list(tmp_path.glob("other*"))


def test_a_damaged_bag_is_one_error_or_a_whole_recording(tmp_path: Path) -> None:
    """rosbags writes no checksums: what is damaged unseen must show here, not to a later reader."""
    write_bag(Recording(recorded(tmp_path / "run.mcap")), tmp_path / "ours")
    files = (tmp_path / "ours" / "ours.mcap", robot_bag(tmp_path / "bag") / "robot_9.mcap")
    out = tmp_path / "out.mcap"
    damaged = tmp_path / "damaged.mcap"
    rng = random.Random(0)
    refused = 0
    for turn in range(60):
        raw = bytearray(files[turn % 2].read_bytes())
        for _ in range(rng.choice((1, 3, 20))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        damaged.write_bytes(raw[: rng.randrange(len(raw))] if turn % 5 == 0 else raw)
        try:
            write_recording(damaged, out)
            assert list(Recording(out))
        except (RecordingError, ConfigError):
            refused += 1
            assert not out.exists()
        assert not partial(out).exists()
        out.unlink(missing_ok=True)
    assert refused > 20


def test_names_of_cameras() -> None:
    assert camera_of("/robot/wrist/image_raw/compressed") == "wrist"
    assert camera_of("/camera/color/image_raw") == "camera"
    assert camera_of("/image") == "image"
    assert image_topic("2.top", compressed=False) == "/camera_2_top/image_raw"
