"""The process `recorder`: real sockets, real files, real kills and real full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap")

from trimvla.launch import cli
from trimvla.launch.system.setup.programs import commands, programs
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bus.messages import Command, Frame, Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import color, report, topic
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.record import recorder
from trimvla.runtime.record.recorder import Recorder, RecorderConfig
from trimvla.runtime.record.recording import Recording, partial
from trimvla.sim.robots.faults import FaultyPublisher

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
REPORT = report(recorder.NAME)


def config(path: Path, **changes) -> RecorderConfig:
    return RecorderConfig(str(path), **{"processes": (), "nice": 0, "flush_s": 0.05, **changes})


def command(number: int) -> Command:
    return Command(time_ns=number, episode=1, kind="action", action=(float(number),))


def until(condition, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(held)


@contextmanager
def in_thread(settings: RecorderConfig, run_dir: Path) -> Iterator[list[BaseException]]:
    """The process's own `run`, and what it raised at the end."""
    stop = threading.Event()
    raised = []

    def target() -> None:
        try:
            recorder.run(settings, run_dir, stop)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    yield raised
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def heard(hears: Subscriber, condition) -> bool:
    def check() -> bool:
        hears.update(0.05)
        message = hears[REPORT].message
        return isinstance(message, Report) and condition(message)

    return until(check)


def test_all_commands_of_a_run_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with (
        Publisher(tmp_path, topic("command")) as commands_out,
        Publisher(tmp_path, topic("front/color")) as frames_out,
        Subscriber(tmp_path, [topic(REPORT)]) as hears,
        in_thread(config(path), tmp_path),
    ):

        def recorded(said: Report) -> bool:
            return said.counters.get("messages", 0) > 0 and said.counters.get("frames", 0) > 0

        def sent_and_recorded() -> bool:
            commands_out.send(command(0))
            frames_out.send(Frame("front", 1, NOISE))
            hears.update(0.05)
            message = hears[REPORT].message
            return isinstance(message, Report) and recorded(message)

        assert until(sent_and_recorded)
        first = commands_out.sent
        for number in range(200):
            commands_out.send(command(number))
            time.sleep(0.001)
        assert heard(hears, lambda report: report.counters["messages"] >= 200)
        assert not path.exists(), "its name says that it is complete"
    numbers = [
        entry.message.sequence for entry in Recording(path).entries(lambda name: name == "command")
    ]
    assert numbers[-200:] == list(range(first, first + 200))
    pictures = [
        entry.message for entry in Recording(path).entries(lambda name: name == "front/color")
    ]
    assert isinstance(pictures[0], Frame)
    np.testing.assert_array_equal(pictures[0].image, NOISE)
    assert not partial(path).exists()


def test_broken_messages_do_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They made 706 MB an hour; all are counted, few are logged."""
    with (
        closing(FaultyPublisher(tmp_path, topic("front/color"))) as out,
        Subscriber(tmp_path, [topic(REPORT)]) as hears,
        in_thread(config(tmp_path / "a.mcap"), tmp_path),
    ):
        rng = np.random.default_rng(0)

        def refused(most: int) -> bool:
            for _ in range(20):
                out.send_damaged(Frame("front", 1, NOISE), rng)
            hears.update(0.05)
            message = hears[REPORT].message
            return isinstance(message, Report) and message.counters["refused"] >= most

        assert until(lambda: refused(200))
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("recorder")]
    assert 0 < len(lines) <= 6
    assert lines[-1].startswith("front/color (and ")


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    """A publisher drops what a reader cannot take, and the queue here keeps the newest two."""
    telemetry = Telemetry("recorder")
    with Publisher(tmp_path, topic("command")) as out:
        taker = Recorder(
            config(tmp_path / "a.mcap", queue_messages=2, topics=("command",)), tmp_path, telemetry
        )

        def connected() -> bool:
            out.send(command(0))
            return taker.step(0.05)

        assert until(connected)
        seen = telemetry.counters["messages"]
        for number in range(50):
            out.send(command(number))
            time.sleep(0.002)
        taker.finish()
    written = telemetry.counters["messages"] - seen
    assert written < 20, "most of the fifty did not fit"
    numbers = [entry.message.sequence for entry in Recording(tmp_path / "a.mcap")]
    assert telemetry.counters["dropped"] == numbers[-1] - numbers[0] + 1 - len(numbers) > 0


def test_a_sender_that_starts_anew_is_no_loss(tmp_path: Path) -> None:
    telemetry = Telemetry("recorder")
    taker = Recorder(config(tmp_path / "a.mcap", topics=("command",)), tmp_path, telemetry)
    for wanted in (60, 65):  # the second sender's numbers begin below the first one's last
        with Publisher(tmp_path, topic("command")) as out:

            def heard_enough(out: Publisher = out, wanted: int = wanted) -> bool:
                out.send(command(0))
                taker.step(0.002)
                return telemetry.counters["messages"] >= wanted

            assert until(heard_enough)
            assert until(lambda: not taker.step(0.1))
    taker.finish()
    numbers = [entry.message.sequence for entry in Recording(tmp_path / "a.mcap")]
    assert sum(after <= before for before, after in pairwise(numbers)) == 1
    assert telemetry.counters["dropped"] == 0


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("a.mcap", "b.mcap.partial"):
        (tmp_path / name).write_bytes(b"precious")
        with pytest.raises(ConfigError, match=f"expected no file at .*{name}"):
            config(tmp_path / name.removesuffix(".partial"))


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="cannot be written"):
        Recorder(config(tmp_path / "file" / "a.mcap"), tmp_path, Telemetry("recorder"))


def publish_frames(run_dir: Path, enough) -> None:
    """Images that do not compress, until `enough()`."""
    with Publisher(run_dir, topic(color("front"))) as out:

        def send() -> bool:
            out.send(Frame("front", 1, NOISE))
            time.sleep(0.005)
            return enough()

        assert until(send, 40.0)


@contextmanager
def as_process(settings: dict, run_dir: Path) -> Iterator[Supervisor]:
    """The recorder as `trimvla run` starts it."""
    sections = {"recorder": {"processes": [], "flush_s": 0.05, **settings}}
    with Supervisor(programs(sections, run_dir), run_dir) as group:
        yield group


def test_a_killed_recorder_leaves_what_it_flushed(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    with as_process({"path": str(path)}, tmp_path) as group:
        publish_frames(
            tmp_path, lambda: partial(path).exists() and partial(path).stat().st_size > 300_000
        )
        os.kill(group.children[0].pid, signal.SIGKILL)
        assert until(lambda: group.children[0].status() == -signal.SIGKILL)
    assert not path.exists(), "nothing half-written under the final name"
    recording = Recording(partial(path))
    pictures = [entry.message for entry in recording]
    assert len(pictures) * NOISE.nbytes > 200_000
    assert recording.cut_off
    assert all(
        isinstance(frame, Frame) and np.array_equal(frame.image, NOISE) for frame in pictures
    )


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
from trimvla.launch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_error_and_stops_nothing(tmp_path: Path) -> None:
    """The limit on a file's size is a disk that is full at 200 kB."""
    path = tmp_path / "a.mcap"
    argv = commands({"recorder": {"processes": [], "flush_s": 0.05, "path": str(path)}}, tmp_path)[
        "recorder"
    ]
    with (
        (tmp_path / "log").open("wb") as log,
        Subscriber(tmp_path, [topic(REPORT)]) as hears,
        subprocess.Popen(
            [sys.executable, "-c", FULL, *argv[argv.index("process") :]],
            stdin=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        publish_frames(tmp_path, lambda: heard_once(hears, "failed"))
        assert process.poll() is None, "it stays, and says why"
        assert heard(hears, lambda said: "cannot be written: File too large" in said.reason)
        process.communicate(timeout=20)
    assert process.returncode == 1
    words = (tmp_path / "log").read_text()
    assert words.count("ERROR") == 1, words
    assert not path.exists()
    assert len(list(Recording(partial(path)))) * NOISE.nbytes > 100_000


def heard_once(hears: Subscriber, state: str) -> bool:
    hears.update()
    message = hears[REPORT].message
    return isinstance(message, Report) and message.state == state


def test_no_space_left_is_given_up_like_any_other_error(tmp_path: Path) -> None:
    """/dev/full says what a full disk says."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    telemetry = Telemetry("recorder")
    with Publisher(tmp_path, topic("command")) as out:
        taker = Recorder(config(tmp_path / "a.mcap", topics=("command",)), tmp_path, telemetry)
        with full.open("wb", buffering=0) as sink:
            os.dup2(sink.fileno(), taker._stream.fileno())

        def failed() -> bool:
            out.send(command(0))
            taker.step(0.02)
            return taker.error is not None

        assert until(failed)
        assert telemetry.state == "failed"
        assert "No space left on device" in telemetry.reason
        assert taker.step(0.01) is False
        with pytest.raises(RecordingError, match="No space left on device"):
            taker.finish()
    assert not (tmp_path / "a.mcap").exists()


@pytest.mark.parametrize("change", [{"queue_frames": 0}, {"flush_s": 0.0}, {"nice": 20}])
def test_settings_out_of_range(change: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected queues"):
        config(tmp_path / "a.mcap", **change)


def test_the_verb_finds_what_there_is_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimvla.launch.system.what_runs.SETTLE_S", 2.0)
    stop = threading.Event()

    def robot() -> None:
        with ExitStack() as stack:
            publishers = []
            for name in ("wrist/color", "command", report("control")):
                publishers.append(stack.enter_context(Publisher(tmp_path, topic(name))))
                time.sleep(0.3)  # a system that starts makes its sockets one after another
            frames, orders, reports = publishers
            while not stop.wait(0.02):
                frames.send(Frame("wrist", time.monotonic_ns(), NOISE))
                orders.send(command(1))
                reports.send(Telemetry("control").report())

    thread = threading.Thread(target=robot)
    thread.start()
    try:
        path = tmp_path / "verb.mcap"
        assert (
            cli.main(["record", str(path), "--run-dir", str(tmp_path), "--seconds", "6", "--json"])
            == 0
        )
    finally:
        stop.set()
        thread.join(10)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    counted = Counter(entry.topic for entry in Recording(path))
    assert set(counted) == {"wrist/color", "command", "control/report"}
    assert (result["frames"], result["messages"]) == (
        counted["wrist/color"],
        counted.total() - counted["wrist/color"],
    )


def test_a_directory_without_a_system_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimvla.launch.system.what_runs.FIND_S", 0.2)
    assert cli.main(["record", str(tmp_path / "a.mcap"), "--run-dir", str(tmp_path), "--json"]) == 1
    assert "expected the sockets of a running system" in capsys.readouterr().out
