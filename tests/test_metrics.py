"""The Prometheus page: what processes report is what a scraper reads; and logs that programs can
read.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

from trimvla.launch.options import JsonFormatter
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import BUCKETS_MS, Telemetry
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record import metrics, page_server
from trimvla.runtime.record.metrics import MetricsConfig

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def said() -> Report:
    telemetry = Telemetry("control")
    telemetry.state = 'hold "now"'
    telemetry.counters.update(late=3, gated=2, actions=7)
    telemetry.values.update(
        {"hz_achieved": 4.5, "rung": 1.0, "hz.front/color": 14.5, "realtime.cores": 1.0}
    )
    telemetry.counters["refused.front/color"] = 5
    telemetry.counters["held.image too old"] = 6
    telemetry.values.update(
        {"jerk_rms.3": 2.5, "limit_distance.3": 0.25, "gripper_flips_per_minute": 12.0}
    )
    for milliseconds in (0.4, 3.0, 3.0, 60_000.0):
        telemetry.time("tick", milliseconds)
    return telemetry.report()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A page on a free port, fed by one process."""
    stop = threading.Event()
    settings = MetricsConfig(processes=("control", "policy"), port=0)
    thread = threading.Thread(target=metrics.run, args=(settings, tmp_path, stop))
    with (
        Subscriber(tmp_path, [topic(report("metrics"))]) as hears,
        Publisher(tmp_path, topic(report("control"))) as out,
    ):
        thread.start()
        assert hears.wait_for(report("metrics"), 20)
        message = hears[report("metrics")].message
        assert isinstance(message, Report)
        found = int(message.values["port"])
        deadline = time.monotonic() + 20
        while "control" not in page(found) and time.monotonic() < deadline:
            out.send(said())
            time.sleep(0.05)
        yield found
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def samples(port: int) -> Samples:
    families = text_string_to_metric_families(page(port))
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


def test_a_scraper_reads_what_was_reported(port: int) -> None:
    found = samples(port)
    of = ("process", "control")
    assert found["trimvla_deadline_misses_total", (of,)] == 3
    assert found["trimvla_gate_interventions_total", (of,)] == 2
    assert found["trimvla_events_total", (("event", "actions"), of)] == 7
    assert found["trimvla_value", (("name", "hz_achieved"), of)] == 4.5
    assert found["trimvla_rung", (of,)] == 1
    assert found["trimvla_refused_messages_total", (of, ("topic", "front/color"))] == 5
    assert found["trimvla_input_hz", (of, ("topic", "front/color"))] == 14.5
    assert found["trimvla_value", (("name", "realtime.cores"), of)] == 1
    assert found["trimvla_state", (of, ("state", 'hold "now"'))] == 1
    assert 0 <= found["trimvla_report_age_seconds", (of,)] < 60
    assert found["trimvla_held_commands_total", (of, ("reason", "image too old"))] == 6
    assert found["trimvla_jerk_rms", (("dimension", "3"), of)] == 2.5
    assert found["trimvla_limit_distance", (("dimension", "3"), of)] == 0.25
    assert found["trimvla_gripper_flips_per_minute", (of,)] == 12


def test_a_histogram_counts_since_the_start(port: int) -> None:
    found = samples(port)
    of = ("process", "control")
    stage = ("stage", "tick")
    buckets = {
        bound: found["trimvla_stage_seconds_bucket", (("le", bound), of, stage)]
        for bound in metrics.BOUNDS_S
    }
    assert [buckets[bound] for bound in ("0.0005", "0.002", "0.005", "5", "+Inf")] == [
        1,
        1,
        3,
        3,
        4,
    ]
    assert found["trimvla_stage_seconds_count", (of, stage)] == 4
    assert found["trimvla_stage_seconds_sum", (of, stage)] == pytest.approx(60.0064)


def test_histograms_outlive_the_window_of_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimvla.runtime.bus.telemetry.WINDOW", 10)
    telemetry = Telemetry("control")
    for _ in range(25):
        telemetry.time("tick", 1.0)
    summary = telemetry.report().latencies["tick"]
    assert summary.count == 10
    assert (sum(summary.buckets), summary.sum) == (25, 25.0)
    assert summary.buckets[BUCKETS_MS.index(1)] == 25, "a bound belongs to its bucket"


def threads() -> int:
    """How many threads serve connections, here in this process."""
    return sum("process_request" in thread.name for thread in threading.enumerate())


def test_silent_connections_hold_no_threads_and_keep_nobody_out(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred that say nothing, or one letter of a request now and then: few threads, and the
    page is read.
    """
    monkeypatch.setattr(page_server, "LONGEST_S", 2.0)
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(100)
        ]
        assert "trimvla_state" in page(port)
        assert threads() <= page_server.MOST_CONNECTIONS + 1
        deadline = time.monotonic() + 30
        while threads() and time.monotonic() < deadline:
            for each in crowd[-4:]:
                with suppress(OSError):
                    each.send(b"G")
            time.sleep(0.1)
        assert threads() == 0, "who drips letters is ended too"
        assert "trimvla_state" in page(port)


def test_what_is_no_request_is_no_traceback(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for rubbish in (
        b"\x16\x03\x01" + bytes(range(256)),
        b"GET " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST\r\n\r\n",
        b"\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as other, suppress(OSError):
            other.sendall(rubbish)
            other.shutdown(socket.SHUT_WR)
            while other.recv(1024):
                pass
    assert "trimvla_state" in page(port)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_an_error(port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        metrics.run(MetricsConfig(port=port), tmp_path, threading.Event())


def test_a_port_that_is_none() -> None:
    with pytest.raises(ConfigError, match="expected a port"):
        MetricsConfig(port=70_000)


def test_json_logs_are_one_object_a_line() -> None:
    record = logging.LogRecord(
        "trimvla.x", logging.WARNING, __file__, 1, "two\nlines %d", (7,), None
    )
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["level"], line["logger"], line["message"]) == (
        "WARNING",
        "trimvla.x",
        "two\nlines 7",
    )
    assert abs(line["monotonic_ns"] - time.monotonic_ns()) < 60e9
    assert line["utc"].endswith("+00:00")


def test_a_program_can_read_the_logs_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('[metrics]\nport = 0\nprocesses = ["control"]\n')
    program = [
        sys.executable,
        "-m",
        "trimvla.launch.cli",
        "process",
        "metrics",
        "--log-format",
        "json",
    ]
    options = ["--system", str(tmp_path / "s.toml"), "--run-dir", str(tmp_path), "--supervised"]
    with subprocess.Popen(
        [*program, *options], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        process.communicate(timeout=20)
    assert first["message"].startswith("http://127.0.0.1:")
    assert first["logger"] == "trimvla.runtime.record.metrics"
    assert process.returncode == 0
