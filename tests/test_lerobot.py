"""LeRobot's image server as a camera: its JSON over a real socket becomes frames on the bus."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
import zmq
from PIL import Image

from tests import attack
from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.cameras.lerobot import LeRobotSource, decode
from trimvla.runtime.cameras.process import CameraConfig
from trimvla.runtime.clock import monotonic_ns, wall_ns
from trimvla.runtime.errors import CameraError, WireError

RED = np.zeros((24, 32, 3), np.uint8)
RED[..., 0] = 250


def message(
    taken_s: float | None = None, name: str = "head_camera", picture: np.ndarray = RED
) -> bytes:
    """As LeRobot's server makes it: RGB handed to an encoder that expects BGR, hence red where blue
    should be.
    """
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(sink, "jpeg", quality=95)
    text = base64.b64encode(sink.getvalue()).decode()
    return json.dumps(
        {"timestamps": {} if taken_s is None else {name: taken_s}, "images": {name: text}}
    ).encode()


@pytest.fixture
def server():
    with zmq.Context() as context, context.socket(zmq.PUB) as out:
        out.setsockopt(zmq.LINGER, 0)
        port = out.bind_to_random_port("tcp://127.0.0.1")
        yield out, f"tcp://127.0.0.1:{port}/head_camera"


def test_its_pictures_arrive_with_their_colours_and_times(tmp_path, server):
    out, where = server
    stop = threading.Event()
    config = CameraConfig(name="front", kind="lerobot", where=where, hz=50, start_timeout_s=20)
    process = threading.Thread(target=camera.run, args=(config, tmp_path, stop))
    with Subscriber(tmp_path, [topic("front/color", 50)]) as inputs:
        process.start()
        try:
            end = time.monotonic() + 20
            for text in itertools.cycle(
                [b"", b"{}", b'{"images": {"head_camera": "not base64"}}', b"\xff" * 100, None]
            ):
                out.send(text if text is not None else message(wall_ns(monotonic_ns()) / 1e9 - 0.2))
                inputs.update(0.02)
                if inputs["front/color"].message is not None:
                    break
                assert time.monotonic() < end
        finally:
            stop.set()
            out.send(message())
            process.join(10)
    frame = inputs["front/color"].message
    assert isinstance(frame, Frame) and frame.image.shape == RED.shape
    assert np.abs(frame.image.astype(int) - RED).max() < 12
    assert 0.2e9 <= monotonic_ns() - frame.time_ns < 20e9
    assert not process.is_alive()


def test_a_server_without_this_camera_is_told(server):
    out, where = server
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            out.send(message(name="wrist"))

    thread = threading.Thread(target=publish)
    thread.start()
    source = LeRobotSource(where, "front", 0.5)
    try:
        with pytest.raises(
            CameraError, match="gives no image: expected an image of 'head_camera', got wrist"
        ):
            source.read()
    finally:
        stop.set()
        thread.join()
        source.close()


def test_another_hosts_camera_must_be_allowed():
    with pytest.raises(CameraError, match="plain TCP is open to everyone"):
        LeRobotSource("tcp://192.168.123.164:5555/head_camera", "front", 1.0)
    LeRobotSource("tcp://192.168.123.164:5555/head_camera", "front", 1.0, allow_plain=True).close()
    with pytest.raises(CameraError, match="expected tcp://host:port"):
        LeRobotSource("192.168.123.164", "front", 1.0)


def test_a_picture_that_is_too_large_is_not_unpacked():
    sink = io.BytesIO()
    Image.new("L", (16_385, 1_025)).save(sink, "jpeg", quality=1)
    text = base64.b64encode(sink.getvalue()).decode()
    with pytest.raises(WireError, match="pixels"):
        decode(json.dumps({"images": {"a": text}}).encode(), "a")


def test_red_and_blue_are_exchanged_where_asked():
    class Source:
        def read(self) -> np.ndarray:
            return RED

        def close(self) -> None: ...

    swapped = partial(camera.as_configured, CameraConfig(swap_red_blue=True))
    assert (camera.take(Source(), "front", swapped).image == RED[..., ::-1]).all()
    assert (camera.take(Source(), "front").image == RED).all()


def hostile_messages() -> dict[str, bytes]:
    def of(picture: bytes) -> bytes:
        return json.dumps({"images": {"a": base64.b64encode(picture).decode()}}).encode()

    return {
        "scans": of(attack.jpeg_of_scans(2000, 2000, 5000)),
        "segments": of(b"\xff\xd8" + b"\xff\xe1\x00\x02" * 1_000_000),
        "another kind of image": of(attack.png_of_zeros(8, 8)),
        "deep": b'{"images": {"a": ""}, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "many cameras": b'{"images": {'
        + b",".join(b'"%d":""' % number for number in range(1_000_000))
        + b"}}",
        "no UTF-8": b'{"images": {"a": "\xff\xfe"}}',
        "no ASCII": '{"images": {"a": "日本"}}'.encode(),
    }


@pytest.mark.parametrize(("name", "raw"), hostile_messages().items(), ids=hostile_messages())
def test_what_would_cost_time_or_memory_is_refused_at_once(name, raw):
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(WireError):
            decode(raw, "a")
        assert tracemalloc.get_traced_memory()[1] < len(raw) * 3 + 4_000_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [
        (3600.0, "got -3.* s behind wall; the hosts' clocks must agree"),
        (-20.0, "got 2.* behind wall"),
        (None, "rise"),
    ],
    ids=["ahead", "behind", "none"],
)
def test_a_server_whose_clock_is_not_ours_does_not_start(server, ahead_s, words):
    """Nor does one that does not say when its images were taken: now is not when."""
    out, where = server
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            out.send(message(None if ahead_s is None else wall_ns(monotonic_ns()) / 1e9 + ahead_s))

    thread = threading.Thread(target=publish)
    thread.start()
    source = LeRobotSource(where, "front", 20.0)
    try:
        with pytest.raises(CameraError, match=f"'front'.*expected time stamps.*{words}"):
            source.read()
    finally:
        stop.set()
        thread.join()
        source.close()


@pytest.mark.parametrize("old_s", [0.05, 0.9, 2.0, 5.0])
def test_an_old_image_of_a_server_stays_old_and_one_without_a_time_has_no_age(server, old_s):
    out, where = server
    stop = threading.Event()
    timed = threading.Event()
    timed.set()

    def publish() -> None:
        while not stop.wait(0.01):
            out.send(message(wall_ns(monotonic_ns()) / 1e9 - old_s if timed.is_set() else None))

    thread = threading.Thread(target=publish)
    thread.start()
    source = LeRobotSource(where, "front", 20.0)
    try:
        frame = camera.take(source, "front")
        age_s = (monotonic_ns() - frame.time_ns) / 1e9
        assert old_s <= age_s + 0.002 and age_s < old_s + 10 and frame.timestamp_source == "server"
        timed.clear()
        assert any(not camera.take(source, "front").age_known for _ in range(20))
    finally:
        stop.set()
        thread.join()
        source.close()
