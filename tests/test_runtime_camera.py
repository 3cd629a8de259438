"""Cameras: sources, start-up with a deadline, and the stream over a real socket."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trimvla.runtime.bus.messages import Frame, Report
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.cameras import device as camera_device
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.cameras.process import CameraConfig, ImageSource, SyntheticSource, start, take
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import CameraError, ConfigError

SMALL = CameraConfig(kind="synthetic", width=32, height=24, hz=50)


class Silent:
    """A camera that never gives an image."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def read(self) -> np.ndarray:
        self.released.wait()
        return np.zeros((2, 2, 3), np.uint8)

    def close(self) -> None:
        self.released.set()


class Strange(Silent):
    """A camera that gives what is no image."""

    def read(self) -> np.ndarray:
        return np.zeros((2, 2), np.float32)


def test_a_camera_that_never_starts_is_a_clear_error():
    silent = Silent()
    begin = time.monotonic()
    with pytest.raises(
        CameraError, match=r"'front': expected a first image within 0\.1 s, got none"
    ):
        start(lambda: silent, "front", 0.1)
    assert time.monotonic() - begin < 2
    silent.close()


def test_a_camera_that_gives_no_picture_is_a_clear_error():
    with pytest.raises(
        CameraError,
        match=r"'front': expected uint8\[\?, \?, 3\] for 'image', got float32\[2, 2\]",
    ):
        start(Strange, "front", 5)


def test_sources_that_cannot_be_opened_are_clear_errors(tmp_path):
    with pytest.raises(CameraError, match="camera 'front': cannot read image"):
        ImageSource(CameraConfig(kind="image", where=str(tmp_path / "absent.png")))
    pytest.importorskip("cv2", reason="devices and video files need OpenCV")
    with pytest.raises(CameraError, match="'/dev/absent' cannot be opened"):
        camera.DeviceSource(CameraConfig(where="/dev/absent"))
    with pytest.raises(CameraError, match="cannot read video"):
        camera.VideoSource(CameraConfig(kind="video", where=str(tmp_path / "absent.mp4"))).read()


def test_the_process_fails_to_start_with_its_camera(tmp_path):
    config = CameraConfig(kind="image", where=str(tmp_path / "absent.png"))
    with pytest.raises(CameraError, match="cannot read image"):
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
    Image.fromarray(picture).save(tmp_path / "image.png")
    source = ImageSource(CameraConfig(kind="image", where=str(tmp_path / "image.png")))
    assert (source.read() == picture).all()


def test_a_frame_is_never_younger_than_its_picture():
    source = SyntheticSource(SMALL)
    before = monotonic_ns()
    frame = take(source, "front")
    assert before <= frame.time_ns <= monotonic_ns() and frame.image.shape == (24, 32, 3)
    source.captured_ns = 17  # type: ignore[attr-defined]
    assert take(source, "front").time_ns == 17


@pytest.mark.parametrize(
    "fields",
    [{"name": "../x"}, {"hz": 0}, {"kind": "dream"}, {"codec": "pickle"}, {"start_timeout_s": 0}],
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


def mjpeg(path: Path, frames: int = 12, broken: Collection[int] = ()) -> str:
    """A video whose frames get brighter; some cannot be decoded."""
    cv2 = pytest.importorskip("cv2", reason="devices and video files need OpenCV")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 20 * number + 10, np.uint8))
    writer.release()
    raw = bytearray(path.read_bytes())
    place = path.read_bytes().find(b"movi")
    for number in range(frames):
        place = raw.find(b"00dc", place + 4)
        size = int.from_bytes(raw[place + 4 : place + 8], "little")
        if number in broken:
            raw[place + 8 : place + 8 + size] = bytes(size)
        place += size
    path.write_bytes(raw)
    return str(path)


@pytest.mark.parametrize("broken", [{5}, {0}, {11}, {0, 1, 5, 6, 7, 11}, set(range(1, 12))])
def test_a_broken_frame_of_a_video_is_passed_over_and_counted(
    tmp_path: Path, broken: set[int], caplog
):
    source = camera.VideoSource(
        CameraConfig(kind="video", where=mjpeg(tmp_path / "clip.avi", broken=broken))
    )
    whole = [number for number in range(12) if number not in broken]
    seen = [round((int(source.read().mean()) - 10) / 20) for _ in range(3 * len(whole))]
    assert seen == whole * 3, "to the end, and from the start again"
    source.read()
    assert source.skipped == 3 * len(broken) + min(
        (n for n in range(12) if n not in broken), default=0
    )
    assert len([r for r in caplog.records if "cannot be decoded" in r.message]) == 1
    source.close()


def test_a_video_that_is_cut_off_starts_again(tmp_path: Path):
    path = mjpeg(tmp_path / "clip.avi")
    raw = Path(path).read_bytes()
    frames = [place.start() for place in re.finditer(b"00dc", raw)]
    Path(path).write_bytes(raw[: frames[8] + 20])
    source = camera.VideoSource(CameraConfig(kind="video", where=path))
    seen = [int(source.read().mean()) for _ in range(24)]
    source.close()
    whole = len(set(seen))
    assert whole in (7, 8) and seen == (seen[:whole] * 4)[:24], (
        "to the cut, and from the start again"
    )


@pytest.mark.parametrize("kind", ["nothing decodes", "text", "directory", "absent"])
def test_a_file_that_is_no_video_is_one_error(tmp_path: Path, kind: str):
    path = tmp_path / "clip.avi"
    if kind == "nothing decodes":
        mjpeg(path, broken=range(12))
    elif kind == "text":
        path.write_text("no video " * 100)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(CameraError, match=r"'front': cannot read video .*clip\.avi"):
        camera.run(
            CameraConfig(kind="video", where=str(path), start_timeout_s=30),
            tmp_path,
            threading.Event(),
        )


class Driver:
    """OpenCV's part of a device: gives what it is to give, one after the other; None where it
    fails.
    """

    def __init__(self, gives: list[object]) -> None:
        self._gives = gives
        self._image = None

    def grab(self) -> bool:
        """Every other failure is one of the driver, the others are of decoding."""
        self._image = self._gives.pop(0) if self._gives else None
        return self._image is not None or (len(self._gives) % 2 == 0 and bool(self._gives))

    def retrieve(self) -> tuple[bool, object]:
        return self._image is not None, self._image

    def get(self, _: int) -> float:
        return 0.0

    def set(self, *_: float) -> bool:
        return True

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def release(self) -> None:
        """Nothing is held."""


def device(gives: list[object], monkeypatch: pytest.MonkeyPatch) -> camera.DeviceSource:
    cv2 = pytest.importorskip("cv2", reason="devices and video files need OpenCV")
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Driver(gives))
    monkeypatch.setattr(camera_device, "GAP_S", 1e6)  # this driver keeps nothing
    return camera.DeviceSource(CameraConfig(kind="device", timestamps="read"))


def test_a_device_that_fails_now_and_then_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    picture = np.full((4, 6, 3), (1, 2, 3), np.uint8)
    source = device([picture, None, picture, None, None, picture[:2]], monkeypatch)
    before = monotonic_ns()
    assert [source.read().shape for _ in range(3)] == [(4, 6, 3), (4, 6, 3), (2, 6, 3)]
    assert source.skipped == 3 and before <= (source.captured_ns or 0) <= monotonic_ns()
    with pytest.raises(CameraError, match="device '0' gives no image"):
        source.read()


def test_a_device_that_gives_no_colours_is_one_error(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        CameraError,
        match=r"device '0': expected uint8\[\?, \?, 3\] for 'image', got uint16\[4, 6\]",
    ):
        device([np.zeros((4, 6), np.uint16)], monkeypatch).read()
