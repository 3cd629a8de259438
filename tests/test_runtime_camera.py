"""Cameras: sources, start-up with a deadline, and the stream over a real socket."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from trimvla.runtime import camera
from trimvla.runtime.bus import Subscriber
from trimvla.runtime.camera import CameraConfig, ImageSource, SyntheticSource, start, take
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import CameraError, ConfigError
from trimvla.runtime.messages import Frame, Report
from trimvla.runtime.topics import topic

SMALL = CameraConfig(kind="synthetic", width=32, height=24, hz=50)


class Silent:
    """A camera that never gives a picture."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def read(self) -> np.ndarray:
        self.released.wait()
        return np.zeros((2, 2, 3), np.uint8)

    def close(self) -> None:
        self.released.set()


class Strange(Silent):
    """A camera that gives what is no picture."""

    def read(self) -> np.ndarray:
        return np.zeros((2, 2), np.float32)


def test_a_camera_that_never_starts_is_a_clear_error():
    silent = Silent()
    begin = time.monotonic()
    with pytest.raises(CameraError, match=r"'front': expected a first picture within 0\.1 s, got none"):
        start(lambda: silent, "front", 0.1)
    assert time.monotonic() - begin < 2
    silent.close()


def test_a_camera_that_gives_no_picture_is_a_clear_error():
    with pytest.raises(CameraError, match=r"'front': expected uint8\[\?, \?, 3\] for 'picture', got float32\[2, 2\]"):
        start(Strange, "front", 5)


def test_sources_that_cannot_be_opened_are_clear_errors(tmp_path):
    with pytest.raises(CameraError, match="camera 'front': cannot read picture"):
        ImageSource(CameraConfig(kind="image", where=str(tmp_path / "absent.png")))
    pytest.importorskip("cv2", reason="devices and video files need OpenCV")
    with pytest.raises(CameraError, match="'/dev/absent' cannot be opened"):
        camera.DeviceSource(CameraConfig(where="/dev/absent"))
    with pytest.raises(CameraError, match="cannot read video"):
        camera.VideoSource(CameraConfig(kind="video", where=str(tmp_path / "absent.mp4"))).read()


def test_the_process_fails_to_start_with_its_camera(tmp_path):
    config = CameraConfig(kind="image", where=str(tmp_path / "absent.png"))
    with pytest.raises(CameraError, match="cannot read picture"):
        camera.run(config, tmp_path, threading.Event())


def test_a_video_starts_again_when_it_ends(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="devices and video files need OpenCV")
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for shade in (40, 200):
        writer.write(np.full((24, 32, 3), (0, 0, shade), np.uint8))
    writer.release()
    source = camera.VideoSource(CameraConfig(kind="video", where=path))
    reds = [int(source.read()[..., 0].mean()) for _ in range(3)]
    source.close()
    assert reds[1] - reds[0] > 100 and reds[2] == reds[0]


def test_a_picture_file_is_shown_as_it_is(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    source = ImageSource(CameraConfig(kind="image", where=str(tmp_path / "picture.png")))
    assert (source.read() == picture).all()


def test_a_frame_is_never_younger_than_its_picture():
    source = SyntheticSource(SMALL)
    before = monotonic_ns()
    frame = take(source, "front")
    assert before <= frame.time_ns <= monotonic_ns() and frame.image.shape == (24, 32, 3)
    source.captured_ns = 17  # type: ignore[attr-defined]
    assert take(source, "front").time_ns == 17


@pytest.mark.parametrize(
    "fields", [{"name": "../x"}, {"hz": 0}, {"kind": "dream"}, {"codec": "pickle"}, {"start_timeout_s": 0}]
)
def test_bad_configurations_are_refused(fields):
    with pytest.raises(ConfigError, match=f"'{next(iter(fields))}'"):
        CameraConfig(**fields)


def test_frames_stream_until_told_to_stop(tmp_path):
    stop = threading.Event()
    process = threading.Thread(target=camera.run, args=(SMALL, tmp_path, stop))
    with Subscriber(tmp_path, [topic("front/color", 50), topic("camera-front/report")]) as inputs:
        process.start()
        seen: list[Frame] = []
        deadline = time.monotonic() + 5
        while len(seen) < 10 and time.monotonic() < deadline:
            inputs.update(0.1)
            seen += [frame for frame in inputs["front/color"].fresh if isinstance(frame, Frame)]
        stop.set()
        process.join()
        time.sleep(0.1)
        inputs.update(0.1)
        last = inputs["camera-front/report"].message
    assert len(seen) == 10
    assert all(b.sequence > a.sequence and b.time_ns > a.time_ns for a, b in pairwise(seen))
    assert any((a.image != b.image).any() for a, b in pairwise(seen))
    assert isinstance(last, Report) and last.counters["frames_published"] >= 10
