"""When an image was taken: drivers' clocks, old images, other hosts.

No image is ever taken for younger than it is.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import fake_capture
from tests.fake_capture import Driver, taken_ns
from trimvla.runtime.bus.messages import Frame, Report, Task
from trimvla.runtime.bus.network import Network, RemoteTopic, install
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.cameras import process as camera
from trimvla.runtime.cameras.driver_clock import KEPT_OFFSETS, DriverClock, Stamped, find_clock
from trimvla.runtime.cameras.process import CameraConfig
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, Instant, instant, monotonic_ns
from trimvla.runtime.errors import CameraError, ConfigError, StaleError
from trimvla.runtime.inference.observation import AgeBudget, join
from trimvla.runtime.log_limit import LimitedLog

BUDGET = AgeBudget(frame_s=0.3)
EARLY = Task(time_ns=0, episode=1, instruction="go", started_ns=0)
CONFIG = CameraConfig(hz=50, width=32, height=24, start_timeout_s=20)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], Driver]:
    """Make a driver what OpenCV opens."""
    cv2 = pytest.importorskip("cv2", reason="devices need OpenCV")
    assert fake_capture.numbers(cv2) == fake_capture.CV2

    def plug(driver: Driver) -> Driver:
        monkeypatch.setattr(cv2, "VideoCapture", driver)
        return driver

    return plug


class Camera:
    """The process `camera-front` in a thread, and a reader of it."""

    def __init__(self, run_dir: Path, config: CameraConfig, stack: ExitStack) -> None:
        self._stop = threading.Event()
        self.error = ""
        names = ("front/color", "camera-front/report")
        self._receives = stack.enter_context(
            Subscriber(run_dir, [topic(name, 50) for name in names])
        )
        self._process = threading.Thread(target=self._run, args=(config, run_dir))
        self._process.start()
        stack.callback(self.stop)

    def _run(self, config: CameraConfig, run_dir: Path) -> None:
        try:
            camera.run(config, run_dir, self._stop)
        except CameraError as error:
            self.error = str(error)

    def stop(self) -> None:
        self._stop.set()
        self._process.join(20)
        assert not self._process.is_alive()

    def frames(self, count: int) -> Iterator[Frame]:
        """The next frames that come."""
        end = time.monotonic() + 30
        while count > 0:
            assert time.monotonic() < end and self._process.is_alive(), (
                f"no frame came: {self.error}"
            )
            self._receives.update(0.1)
            for message in self._receives["front/color"].fresh:
                if isinstance(message, Frame):
                    count -= 1
                    yield message

    def wait_for_end(self) -> str:
        """The error with which it ended."""
        self._process.join(30)
        return self.error

    def report(self) -> Report:
        """The last one."""
        self._receives.update(0.5)
        message = self._receives["camera-front/report"].message
        assert isinstance(message, Report)
        return message


def judge(frame: Frame) -> str:
    """Why the policy refuses to act on a frame; empty if it does not."""
    try:
        join(monotonic_ns(), {"front": frame}, EARLY, None, BUDGET)
    except StaleError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("stamp", [fake_capture.monotonic, fake_capture.wall])
@pytest.mark.parametrize("delay_s", [0.0, 0.5, 1.1, 2.0, 5.0])
def test_an_image_is_as_old_as_it_is(tmp_path, device, stamp, delay_s):
    device(Driver(stamp, delay_s=delay_s))
    with ExitStack() as stack:
        front = Camera(tmp_path, CONFIG, stack)
        for frame in front.frames(10):
            assert abs(frame.time_ns - taken_ns(frame.image)) < 3 * NS_PER_MS
            assert frame.timestamp_source == "driver"
            assert delay_s < 0.3 or "at most 300 ms of age for 'front/color', got" in judge(frame)
        front.stop()
        assert front.report().values["timestamps.driver"] == 1.0


POSITION = monotonic_ns() - NS_PER_S  # a stream's own time begins when it is opened


@pytest.mark.parametrize(
    ("stamp", "words"),
    [
        (
            fake_capture.no_clock,
            r"time stamps that rise from image to image, got 0\.0, 0\.0, 0\.0, 0\.0 ms",
        ),
        (
            lambda taken: (taken - POSITION) / NS_PER_MS,
            "s behind monotonic, .* s behind boottime, .* s behind wall",
        ),
        (
            lambda taken: fake_capture.monotonic(taken) + 3.6e6,
            "clocks, got -(3600|3599).* s behind monot",
        ),
        (lambda taken: fake_capture.wall(taken) - 60e3, "s behind wall"),
        (lambda taken: float("nan"), "time stamps that rise"),
    ],
)
def test_a_driver_without_a_clock_of_this_host_does_not_start(tmp_path, device, stamp, words):
    driver = device(Driver(stamp))
    with pytest.raises(
        CameraError,
        match=f"(?s)camera 'front': device '0': expected .*{words}.*timestamps = 'read'",
    ):
        camera.run(CONFIG, tmp_path, threading.Event())
    assert driver.released and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "later",
    [
        fake_capture.no_clock,
        lambda taken: fake_capture.monotonic(taken) + 500,
        lambda taken: fake_capture.monotonic(taken) - 800,
        lambda taken: float("inf"),
    ],
    ids=["none", "future", "back", "infinite"],
)
def test_a_stamp_that_makes_no_sense_is_of_unknown_age(
    tmp_path, device, later, monkeypatch, caplog
):
    monkeypatch.setattr(camera, "TIMELESS_S", 0.5)
    monkeypatch.setattr(camera, "limited_log", LimitedLog(camera.log))  # its count begins anew
    driver = device(Driver())
    with ExitStack() as stack:
        front = Camera(tmp_path, CONFIG, stack)
        assert all(frame.age_known for frame in front.frames(5))
        driver.stamp = later
        lost = [frame for frame in front.frames(10) if not frame.age_known]
        assert lost and all(
            frame.time_ns == 0 and "image of unknown age" in judge(frame) for frame in lost
        )
        driver.stamp = fake_capture.monotonic
        assert any(frame.age_known for frame in front.frames(20)), (
            "one stamp that is lost is not the end"
        )
        driver.stamp = later
        assert front.wait_for_end() == "camera 'front': no usable time stamp within 0.5 s"
        assert front.report().counters["frames_of_unknown_age"] >= len(lost)
    assert "an image without a usable time stamp" in caplog.text


def test_a_drivers_clock_that_runs_slow_makes_old_images_not_new_ones(tmp_path, device):
    driver = device(Driver())
    with ExitStack() as stack:
        front = Camera(tmp_path, CONFIG, stack)
        first = next(front.frames(1)).time_ns
        driver.stamp = lambda taken: fake_capture.monotonic(taken - (taken - first) // 2)
        frames = list(front.frames(120))
        assert all(frame.time_ns <= taken_ns(frame.image) + 3 * NS_PER_MS for frame in frames)
        assert judge(frames[-1]), "2 s on, and 1 s behind"


def test_what_a_driver_kept_while_nobody_read_is_passed_over(device):
    """Without times of its own; the camera's process was stopped for a second, and four old images
    wait.
    """
    device(Driver(fake_capture.no_clock, hz=50, kept=4))
    source = camera.DeviceSource(CameraConfig(hz=50, width=32, height=24, timestamps="read"))
    for gap_s in (0.0, 0.0, 1.0, 0.0, 0.6):
        time.sleep(gap_s)
        frame = camera.take(source, "front")
        late_ms = (frame.time_ns - taken_ns(frame.image)) / NS_PER_MS
        assert late_ms < 2 * 20 + 5, (
            f"an image taken {late_ms:.0f} ms before the time that it claims"
        )
        assert frame.timestamp_source == "read"
    source.close()


def test_a_pixel_format_is_read_back(tmp_path, device, caplog):
    caplog.set_level(logging.INFO)
    device(Driver())
    camera.DeviceSource(CameraConfig(fourcc="MJPG")).close()
    assert "pixels as 'MJPG'" in caplog.text
    assert (
        "asked for 640 for 'width', got 32" in caplog.text
        and "asked for 480 for 'height', got 24" in caplog.text
    )
    driver = device(Driver())
    with pytest.raises(
        CameraError, match="device '0': expected pixels as 'H264' for 'fourcc', got 'YUYV'"
    ):
        camera.run(CameraConfig(fourcc="H264"), tmp_path, threading.Event())
    assert driver.released


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fourcc": "MJPEG"}, "four letters such as MJPG, got 'MJPEG' for 'fourcc'"),
        ({"fourcc": "MJP\n"}, "for 'fourcc'"),
        ({"timestamps": "now"}, "expected driver or read, got 'now' for 'timestamps'"),
        ({"kind": "video", "where": "a.mp4", "fourcc": "MJPG"}, "kind = 'device' with 'fourcc'"),
        (
            {"kind": "lerobot", "timestamps": "read"},
            "kind = 'device' with 'fourcc' or 'timestamps', got 'lerobot'",
        ),
    ],
)
def test_settings_of_devices_are_checked(fields, words):
    with pytest.raises(ConfigError, match=words):
        CameraConfig(**fields)


HOUR_AHEAD = ("unshare", "--user", "--map-root-user", "--time", "--boottime", "3600", "--fork")
PUBLISH = """
import sys, time
from pathlib import Path
import numpy as np
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.topics import topic
with Publisher(Path(sys.argv[1]), topic("front/color")) as frames:
    while True:
        frames.send(Frame("front", monotonic_ns(), np.zeros((4, 4, 3), np.uint8)))
        time.sleep(0.02)
"""


@pytest.mark.parametrize("suspended", [False, True])
def test_the_clock_counts_on_while_the_host_is_suspended(tmp_path, suspended):
    """A publisher whose time since start is an hour ahead, as after a suspend of the others:
    CLOCK_MONOTONIC agrees.
    """
    if subprocess.run([*HOUR_AHEAD, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs time namespaces")
    command = [*(HOUR_AHEAD if suspended else ()), sys.executable, "-c", PUBLISH, str(tmp_path)]
    process = subprocess.Popen(command)
    try:
        with Subscriber(tmp_path, [topic("front/color")]) as receives:
            assert receives.wait_for("front/color", 30)
            frame = receives["front/color"].message
    finally:
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
    assert isinstance(frame, Frame)
    assert (
        judge(frame) == ""
        if not suspended
        else "got one 3" in judge(frame) and "ms ahead" in judge(frame)
    )


def children_of(pid: int) -> list[int]:
    """What `unshare --fork` started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read_at(ours_s: float, suspended_s: float = 0.0, wall_s: float = 1e9) -> Instant:
    """A moment of a host that was suspended for so long before it, and whose wall clock was set
    so.
    """
    moments = (ours_s, ours_s - suspended_s, ours_s + wall_s)
    return Instant(*(round(moment * NS_PER_S) for moment in moments))


def taken(clock: DriverClock, now: Instant, stamp_s: float) -> float | None:
    """When an image is said to be taken [s]."""
    found = clock.to_ours(Stamped(round(stamp_s * NS_PER_S), now))
    return None if found is None else found / NS_PER_S


def test_an_image_from_before_a_suspend_is_as_old_as_the_suspend():
    clock = DriverClock("monotonic")
    assert taken(clock, read_at(100.0), 99.95) == pytest.approx(99.95)
    # the driver kept it; its clock stood still
    kept = taken(clock, read_at(3700.1, suspended_s=3600), 99.98)
    assert kept == pytest.approx(99.98)
    fresh = [
        taken(clock, read_at(3700.2 + k / 15, 3600), 100.15 + k / 15)
        for k in range(KEPT_OFFSETS + 1)
    ]
    assert all(time_s is None or time_s < 110 for time_s in fresh[: KEPT_OFFSETS - 2]), (
        "which of them, nobody knows"
    )
    assert fresh[-1] == pytest.approx(3700.15 + KEPT_OFFSETS / 15)


@pytest.mark.parametrize("step_s", [-3600.0, -0.4, 0.4, 3600.0])
def test_a_wall_clock_that_is_set_makes_no_image_younger(step_s):
    clock = DriverClock("wall")
    for tick in range(100):
        now_s = 10 + tick / 15
        step = step_s if tick >= 50 else 0.0
        true_s = now_s - 0.2  # in the driver for three images, stamped before or after the step
        stamp_s = true_s + 1e9 + (step_s if tick >= 53 else 0.0)
        found = taken(clock, read_at(now_s, wall_s=1e9 + step), stamp_s)
        assert found is None or found <= true_s + 0.003
        assert tick < 62 or found == pytest.approx(true_s)


def test_a_clock_is_found_over_several_images():
    now = read_at(7300.0, suspended_s=3600)
    rising = [0.0, 0.03, 0.06, 0.09]

    def found(first_s: float) -> str:
        probes = [Stamped(round((first_s + s) * NS_PER_S), read_at(7300 + s, 3600)) for s in rising]
        return find_clock(probes)

    assert (
        found(3699.9) == "monotonic"
        and found(7299.9) == "boottime"
        and found(1e9 + 7299.9) == "wall"
    )
    assert found(3695.0) == "monotonic", "5 s old, and so they stay"
    for first_s in (3600.0, 3700.5, 5000.0):
        with pytest.raises(CameraError, match="0 to 10 s behind one of this host's clocks"):
            found(first_s)
    with pytest.raises(
        CameraError, match=r"rise from image to image, got 3699900\.0, 3699800\.0 ms"
    ):
        find_clock([Stamped(round(s * NS_PER_S), now) for s in (3699.9, 3699.8)])


@contextmanager
def two_hosts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two run directories that share nothing but TCP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    network = Network({"front/color": RemoteTopic(f"tcp://127.0.0.1:{port}")})
    run_dirs = (tmp_path / "camera-host", tmp_path / "robot")
    for run_dir in run_dirs:
        run_dir.mkdir(mode=0o700)
        install(network, run_dir)
    yield run_dirs


@pytest.mark.parametrize("age_s", [0.0, 0.5, 0.9, 2.0])
@pytest.mark.parametrize(
    "label", [0, 1, None], ids=["no label", "a wrong label", "the label of sending"]
)
def test_an_image_from_another_host_is_as_old_as_it_was_there(tmp_path, age_s, label):
    """Whatever a source put into the label: it is derived from the time of capture, when the frame
    is sent.
    """
    image = np.zeros((24, 32, 3), np.uint8)
    with two_hosts(tmp_path) as (there, here):
        front = topic("front/color")
        with Publisher(there, front) as frames, Subscriber(here, [front]) as receives:
            end = time.monotonic() + 20
            captured_ns = 0
            while receives["front/color"].message is None:
                assert time.monotonic() < end
                captured_ns = monotonic_ns() - round(age_s * NS_PER_S)
                utc_ns = instant().wall if label is None else label
                frames.send(Frame("front", captured_ns, image, utc_ns=utc_ns))
                receives.update(0.05)
            frame = receives["front/color"].message
    assert isinstance(frame, Frame) and frame.time_ns <= captured_ns + 5 * NS_PER_MS
    assert frame.time_ns > captured_ns - 20 * NS_PER_S
    assert age_s < 0.3 or "300 ms of age" in judge(frame)


def test_an_image_of_unknown_age_stays_so_on_another_host(tmp_path):
    image = np.zeros((24, 32, 3), np.uint8)
    with two_hosts(tmp_path) as (there, here):
        front = topic("front/color")
        with Publisher(there, front) as frames, Subscriber(here, [front]) as receives:
            end = time.monotonic() + 20
            while receives["front/color"].message is None:
                assert time.monotonic() < end
                frames.send(Frame("front", 0, image, timestamp_source="unknown"))
                receives.update(0.05)
            frame = receives["front/color"].message
    assert isinstance(frame, Frame) and not frame.age_known and "unknown age" in judge(frame)
