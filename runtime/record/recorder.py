"""The process `recorder`: everything that travels, into one MCAP file. It never slows the others.

It listens like any other reader: a publisher drops what a reader cannot take. Its own queues are
bounded; what is lost on the way shows as gaps in the sequence numbers and is counted. A file that
cannot be written, on a full disk or anywhere else, ends the recording with one error: the process
stays, its report has the error, and nothing else stops.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.sockets import Delivery, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import TOPICS, Topic, color, report, topic
from trimvla.runtime.errors import ConfigError, RecordingError, WireError
from trimvla.runtime.log_limit import LimitedLog
from trimvla.runtime.record.recording import RecordingWriter, partial

log = logging.getLogger(__name__)
NAME = "recorder"
WAIT_S = 0.1  # for messages, so that `stop` is seen
SILENCE_S = 0.3  # after which nobody sends anything more
LAST_WORDS_S = 2.0  # and how long they may take to end
MIB = 1024 * 1024


@dataclass(frozen=True)
class RecorderConfig:
    """What is recorded, and where to."""

    path: str
    """The file; while it is written it has the suffix `.partial`."""
    cameras: tuple[str, ...] = ("front",)
    processes: tuple[str, ...] = ("policy", "control")
    """Whose reports are recorded."""
    topics: tuple[str, ...] = tuple(TOPICS)
    """What else is recorded."""
    system: dict[str, Any] = field(default_factory=dict)
    """How the system that is recorded was configured: section -> settings.

    A replay reads `policy`.
    """
    queue_frames: int = 32
    """Images by camera that wait for the disk."""
    queue_messages: int = 1024
    """Other messages by topic that wait for the disk."""
    flush_s: float = 1.0
    """As much is lost at most when the process is killed."""
    nice: int = 10
    """How much it stands back behind the control loop, from 0 to 19."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what is out of range, and where a file would be overwritten."""
        if (
            min(self.queue_frames, self.queue_messages) < 1
            or not self.flush_s > 0
            or not 0 <= self.nice <= 19
        ):
            numbers = f"{self.queue_frames}, {self.queue_messages}, {self.flush_s} and {self.nice}"
            raise ConfigError(
                f"expected queues >= 1, 'flush_s' > 0 and 'nice' from 0 to 19, got {numbers}"
            )
        for path in (Path(self.path), partial(Path(self.path))):
            if path.exists():
                raise ConfigError(
                    f"expected no file at {path}, got one: move it or record elsewhere"
                )

    def inputs(self) -> list[Topic]:
        """All topics, with queues for a reader that wants every message.

        Raises ConfigError for an unknown one.
        """
        frames = [_queued(topic(color(name)), self.queue_frames) for name in self.cameras]
        others = (*self.topics, *map(report, self.processes))
        return frames + [_queued(topic(name), self.queue_messages) for name in others]


def _queued(row: Topic, depth: int) -> Topic:
    return replace(row, depth=depth, high_water=min(depth, 64))


def facts(system: dict[str, Any]) -> dict[str, str]:
    """What a replay must know, as the file keeps it."""
    packages = ("trimvla", "onnxruntime", "numpy", "pillow")
    versions = {name: version(name) for name in packages}
    texts = {"system": system, "versions": versions, "processor": processor()}
    return {
        name: msgspec.json.encode(value, enc_hook=str).decode() for name, value in texts.items()
    }


def processor() -> str:
    """The processor's name, where Linux reports it: kernels are chosen by it, and with them the
    last bits.
    """
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return os.uname().machine


class Recorder:
    """Takes what comes and writes it, until it cannot."""

    def __init__(self, config: RecorderConfig, run_dir: Path, telemetry: Telemetry) -> None:
        """Open the file and listen. Raises RecordingError if the file cannot be written."""
        self._config = config
        self._telemetry = telemetry
        self._rows = {row.name: row for row in config.inputs()}
        self._last: dict[tuple[str, int], int] = {}
        self._limited = LimitedLog(log)
        self._flushed = time.monotonic()
        self.error: str | None = None
        """Why nothing is recorded any more."""
        self._inputs: Subscriber | None = Subscriber(run_dir, list(self._rows.values()))
        try:
            self._stream, self._writer = self._open()
        except RecordingError:
            self._close_inputs()
            raise
        telemetry.state = "recording"

    def _open(self) -> tuple[BinaryIO, RecordingWriter]:
        path = partial(Path(self._config.path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("xb")
            return stream, RecordingWriter(stream, facts(self._config.system))
        except OSError as error:
            raise RecordingError(
                f"recording '{path}': cannot be written: {error.strerror}"
            ) from None

    def step(self, timeout_s: float) -> bool:
        """Wait for messages and write them; whether there were any."""
        if self._inputs is None:
            time.sleep(timeout_s)
            return False
        content = self._inputs.drain(timeout_s)
        try:
            for row, delivery in _in_order(content, self._rows):
                self._add(row, delivery)
            self._flush_when_due()
        except OSError as error:
            self._give_up(error)
        return any(content.values())

    def _add(self, row: Topic, delivery: Delivery) -> None:
        try:
            sequence = self._writer.add(row, delivery.received_ns, delivery.parts)
        except WireError as error:
            self._telemetry.count("refused")
            self._telemetry.count(f"refused.{row.name}")
            self._telemetry.problems[row.name] = str(error)
            self._limited.warning(row.name, "not recorded: %s", error)
            return
        self._note_gap((row.name, delivery.sender), sequence)
        self._telemetry.count("frames" if row.type is Frame else "messages")

    def _note_gap(self, sender: tuple[str, int], sequence: int) -> None:
        """Numbers count up by one; where they fall, the sender has started anew."""
        gap = sequence - self._last.get(sender, sequence - 1) - 1
        self._last[sender] = sequence
        self._telemetry.count("dropped", max(0, gap))

    def _flush_when_due(self) -> None:
        if time.monotonic() - self._flushed >= self._config.flush_s:
            self._writer.flush()
            self._flushed = time.monotonic()
            self._telemetry.values["file_mib"] = self._stream.tell() / MIB

    def _give_up(self, error: OSError) -> None:
        """One error; the sockets are closed, so that nothing more is spent."""
        name = partial(Path(self._config.path))
        self.error = (
            f"recording '{name}': cannot be written: {error.strerror}; what was flushed can be read"
        )
        log.error("%s", self.error)
        self._telemetry.state = "failed"
        self._telemetry.reason = self.error
        self._close_inputs()
        with suppress(OSError):
            self._stream.close()

    def _close_inputs(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None

    def finish(self) -> None:
        """Take in the others' last words; write the index; give the file its name.

        Raises RecordingError.
        """
        deadline = time.monotonic() + LAST_WORDS_S
        while self._inputs is not None and time.monotonic() < deadline and self.step(SILENCE_S):
            pass
        self._close_inputs()
        self._limited.flush()
        if self.error is None:
            self._complete()
        if self.error is not None:
            raise RecordingError(self.error)

    def _complete(self) -> None:
        path = Path(self._config.path)
        try:
            self._writer.finish()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            partial(path).rename(path)
        except OSError as error:
            self._give_up(error)
            return
        self._telemetry.values["file_mib"] = path.stat().st_size / MIB
        self._telemetry.state = "complete"
        self._telemetry.reason = ""


def _in_order(
    content: dict[str, list[Delivery]], rows: dict[str, Topic]
) -> Sequence[tuple[Topic, Delivery]]:
    """As they were received."""
    every = [
        (rows[name], delivery) for name, deliveries in content.items() for delivery in deliveries
    ]
    return sorted(every, key=lambda item: item[1].received_ns)


def run(config: RecorderConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `recorder`, until `stop`.

    Raises RecordingError if the file cannot be opened; if writing fails later, only after `stop`.
    """
    os.nice(config.nice)
    telemetry = Telemetry(NAME)
    telemetry.counters.update(dropped=0, refused=0)
    reporter = Reporter(run_dir, telemetry)  # before there is a file: a system has one recorder
    try:
        recorder = Recorder(config, run_dir, telemetry)
        while not stop.is_set():
            recorder.step(WAIT_S)
            reporter.beat()
        recorder.finish()
    finally:
        reporter.close()
