"""ROS 2 messages as ours, ours as its: the oracle is rosbags, which writes and reads real CDR."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, Instant, instant
from trimvla.runtime.errors import DriverError, WireError
from trimvla.runtime.image_codec import encode_image
from trimvla.runtime.ros import cdr
from trimvla.runtime.ros.images import CHANNELS, image_message, read_compressed, read_image
from trimvla.runtime.ros.joints import array, positions_of, trajectory
from trimvla.runtime.ros.stamps import StampClock, arrival

rosbags = pytest.importorskip("rosbags.typesys", reason="needs rosbags, of the extra `ros`")
STORE = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
T = STORE.types
WIDTH = 6
HEIGHT = 4
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = np.repeat(RGB[..., :1], 3, axis=2)


def sent(message: object, little_endian: bool = True) -> bytes:
    """As a node of another distribution sends it."""
    kind = message.__msgtype__  # pyright: ignore[reportAttributeAccessIssue]
    return bytes(STORE.serialize_cdr(message, kind, little_endian=little_endian))


def head(sec: int = 1, nanosec: int = 2) -> object:
    stamp = T["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def image(**changes: object) -> object:
    fields = {
        "header": head(),
        "height": HEIGHT,
        "width": WIDTH,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": 3 * WIDTH,
        "data": RGB.reshape(-1),
    }
    return T["sensor_msgs/msg/Image"](**{**fields, **changes})


def pixels(encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """What a camera sends in this encoding, and what is seen."""
    alpha = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)
    return {
        "rgb8": (RGB, RGB),
        "bgr8": (RGB[..., ::-1], RGB),
        "rgba8": (np.concatenate([RGB, alpha], axis=2), RGB),
        "bgra8": (np.concatenate([RGB[..., ::-1], alpha], axis=2), RGB),
        "mono8": (RGB[..., :1], GREY),
    }[encoding]


@pytest.mark.parametrize("encoding", CHANNELS)
@pytest.mark.parametrize("padding", [0, 5])
def test_an_image_is_rgb(encoding: str, padding: int) -> None:
    given, expected = pixels(encoding)
    rows = given.reshape(HEIGHT, -1)
    padded = np.concatenate([rows, np.full((HEIGHT, padding), 99, np.uint8)], axis=1)
    message = image(
        encoding=encoding, step=padded.shape[1], data=padded.reshape(-1), is_bigendian=1
    )
    for little_endian in (True, False):
        got = read_image(cdr.decode(sent(message, little_endian), cdr.IMAGE))
        assert got.flags.c_contiguous and (got == expected).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoding": "16UC1"}, "for 'encoding', got '16UC1'"),
        ({"encoding": "bayer_rggb8"}, "rgb8, bgr8"),
        ({"step": 3 * WIDTH - 1}, "at least 18 bytes a row for 'step', got 17"),
        ({"step": 3 * WIDTH + 1}, "expected 76 bytes for 'data', got 72"),
        ({"height": 0, "data": RGB.reshape(-1)[:0]}, "got 6 x 0"),
        ({"width": 70_000, "height": 70_000}, "pixels"),
    ],
)
def test_an_image_that_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(WireError, match=words):
        read_image(cdr.decode(sent(image(**changes)), cdr.IMAGE))


def packed(data: bytes, form: str) -> object:
    given = np.frombuffer(data, np.uint8)
    return T["sensor_msgs/msg/CompressedImage"](header=head(), format=form, data=given)


def test_a_packed_image_is_rgb() -> None:
    png = encode_image(RGB, "png")
    assert (read_compressed(packed(png, "rgb8; png compressed bgr8")) == RGB).all()
    flat = np.full((16, 16, 3), (200, 30, 10), np.uint8)
    raw = sent(packed(encode_image(flat, "jpeg"), "bgr8; jpeg compressed bgr8"))
    got = read_compressed(cdr.decode(raw, cdr.COMPRESSED))
    assert abs(got.astype(int) - flat).max() <= 3, "colours in their order"
    for data, form in ((png, "16UC1; compressedDepth png"), (b"RIFF1234", "webp"), (b"", "jpeg")):
        with pytest.raises(WireError, match="JPEG or PNG"):
            read_compressed(packed(data, form))
    with pytest.raises(WireError, match="png"):
        read_compressed(packed(png[:40], "png"))


JOINTS = ("pan", "lift", "grip")


def state(names: list[str], values: list[float]) -> object:
    none = np.zeros(0)
    return T["sensor_msgs/msg/JointState"](
        header=head(), name=names, position=np.array(values, np.float64), velocity=none, effort=none
    )


def test_joints_are_found_by_name_alone() -> None:
    message = cdr.decode(sent(state(["wheel", "grip", "pan", "lift"], [9, 3, 1, 2])), cdr.JOINTS)
    assert positions_of(message, JOINTS) == (1.0, 2.0, 3.0)
    assert cdr.stamp_ns(message) == NS_PER_S + 2


@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        (["pan", "lift"], [1, 2], r"\['grip'\] missing"),
        (["pan", "lift", "grip", "pan"], [1, 2, 3, 4], r"\['pan'\] more than once"),
        (["pan", "lift", "grip"], [1, 2], "expected 3 numbers for 'position'"),
        (["pan", "lift", "grip"], [1, np.nan, 3], r"others for \['lift'\]"),
        (["pan", "lift", "grip"], [1, 2, np.inf], r"others for \['grip'\]"),
        ([], [], "missing"),
    ],
)
def test_joints_that_are_refused(names: list[str], values: list[float], words: str) -> None:
    with pytest.raises(WireError, match=words):
        positions_of(cdr.decode(sent(state(names, values)), cdr.JOINTS), JOINTS)


def test_commands_are_read_by_others() -> None:
    raw = cdr.encode(trajectory(JOINTS, (1, 2, 3), 1_250_000_000), cdr.TRAJECTORY)
    got = STORE.deserialize_cdr(raw, cdr.TRAJECTORY)
    assert got.joint_names == list(JOINTS)
    assert [point.positions.tolist() for point in got.points] == [[1.0, 2.0, 3.0]]
    reach = got.points[0].time_from_start
    assert (reach.sec, reach.nanosec) == (1, 250_000_000)
    assert (got.header.stamp.sec, got.header.stamp.nanosec) == (0, 0), "now"
    numbers = STORE.deserialize_cdr(cdr.encode(array((0.5, -1)), cdr.ARRAY), cdr.ARRAY)
    assert numbers.data.tolist() == [0.5, -1.0]
    ours = image_message(RGB.tobytes(), "rgb8", (WIDTH, HEIGHT), 5 * NS_PER_S + 7, "front")
    seen = STORE.deserialize_cdr(cdr.encode(ours, cdr.IMAGE), cdr.IMAGE)
    assert (seen.data.reshape(RGB.shape) == RGB).all() and cdr.stamp_ns(seen) == 5 * NS_PER_S + 7


def test_bytes_that_are_no_message() -> None:
    """Whatever comes, one error; a length that promises gigabytes costs none."""
    rng = np.random.default_rng(1)
    whole = sent(image())
    for length in range(len(whole) - 3):  # up to three bytes of padding are none of it
        with pytest.raises(WireError, match="expected sensor_msgs/msg/Image"):
            cdr.decode(whole[:length], cdr.IMAGE)
    for _ in range(500):
        raw = bytearray(sent(state(list(JOINTS), [1, 2, 3])))
        raw[rng.integers(len(raw))] = rng.integers(256)
        try:
            positions_of(cdr.decode(bytes(raw), cdr.JOINTS), JOINTS)
        except WireError:
            continue
    broken = cdr.decode(sent(image(header=head(nanosec=2**31))), cdr.IMAGE)
    with pytest.raises(WireError, match="nanosec"):
        cdr.stamp_ns(broken)


def settled(offset_ns: int = 0) -> tuple[StampClock, Instant]:
    """A clock that has seen its first messages; ROS time is the wall clock plus the offset."""
    clock = StampClock("/joint_states")
    now = instant()
    for place in range(4):
        moment = shifted(now, (place - 4) * 10)
        assert clock.to_ours(moment.wall + offset_ns, moment.wall + offset_ns, moment) is None
    assert clock.found
    return clock, now


def shifted(now: Instant, milliseconds: int) -> Instant:
    by = milliseconds * NS_PER_MS
    return replace(now, ours=now.ours + by, awake=now.awake + by, wall=now.wall + by)


@pytest.mark.parametrize(
    "offset_ns", [0, 12 * NS_PER_S - time.time_ns()], ids=["of this host", "of a simulator"]
)
def test_a_stamp_keeps_its_age(offset_ns: int) -> None:
    """On the wall clock, and on a simulator's, which began 12 s ago."""
    clock, now = settled(offset_ns)
    ros_now = now.wall + offset_ns
    assert clock.to_ours(ros_now - 80 * NS_PER_MS, ros_now, now) == now.ours - 80 * NS_PER_MS
    later = shifted(now, 100)
    stamp = ros_now + 70 * NS_PER_MS
    assert clock.to_ours(stamp, ros_now + 100 * NS_PER_MS, later) == now.ours + 70 * NS_PER_MS


def test_a_stamp_that_cannot_be_is_never_now() -> None:
    clock, now = settled()
    assert clock.to_ours(0, now.wall, now) is None, "no stamp"
    assert clock.to_ours(now.wall + NS_PER_S, now.wall, now) is None, "from the future"
    assert clock.to_ours(now.wall - NS_PER_MS, now.wall, now) is not None
    assert clock.to_ours(now.wall - NS_PER_S, now.wall, now) is None, "from before the last one"


def test_clocks_are_read_together_where_the_process_is_stopped_in_between() -> None:
    stops = iter([0.02, 0.02, 0.0])

    def ros_now() -> int:
        time.sleep(next(stops, 0.0))
        return time.time_ns()

    found = arrival(ros_now)
    assert abs(found.ros_ns - found.ours.wall) < 10 * NS_PER_MS


def test_a_simulator_that_is_slow_makes_nothing_younger() -> None:
    """Half as fast as our clock: an image of 20 ms there is 40 ms old here."""
    clock, now = settled()
    found: int | None = None
    moment = now
    for step in range(1, 20):
        moment = shifted(now, 20 * step)
        ros_now = now.wall + 10 * step * NS_PER_MS
        found = clock.to_ours(ros_now - 20 * NS_PER_MS, ros_now, moment)
        if found is not None:
            assert found <= moment.ours - 20 * NS_PER_MS
    assert found is not None and found <= moment.ours - 40 * NS_PER_MS


@pytest.mark.parametrize("stamp_ns", [0, -3600 * NS_PER_S, 3600 * NS_PER_S])
def test_stamps_of_no_clock_are_one_error(stamp_ns: int) -> None:
    clock = StampClock("/camera/image_raw")
    now = instant()
    with pytest.raises(DriverError, match="topic '/camera/image_raw': expected time stamps"):
        for place in range(4):
            moment = shifted(now, 10 * place)
            stamp = moment.wall + stamp_ns if stamp_ns else 0
            clock.to_ours(stamp, moment.wall, moment)
