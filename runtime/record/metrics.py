"""The process `metrics`: the reports of all processes as a Prometheus page,
`http://127.0.0.1:9464/metrics`.

Knows reports; measures nothing itself. What operators ask for has a name of its own in a table;
every other counter and value is there under its own label. The page is for this host alone unless
`host` is set.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from trimvla.runtime.bus.messages import Report, Summary
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.telemetry import BUCKETS_MS, Reporter, Telemetry
from trimvla.runtime.bus.topics import report, topic
from trimvla.runtime.clock import NS_PER_S, monotonic_ns
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.ports import check_port
from trimvla.runtime.record.page_server import PageServer

log = logging.getLogger(__name__)
NAME = "metrics"
WAIT_S = 0.2
BOUNDS_S = [*(f"{bound / 1e3:g}" for bound in BUCKETS_MS), "+Inf"]

Table = dict[str, tuple[str, str]]
Labelled = dict[str, tuple[str, str, str]]

#   counter of a process's report -> metric, what it counts
COUNTERS = {
    "late": ("trimvla_deadline_misses", "Control ticks that began late"),
    "skipped": ("trimvla_skipped_ticks", "Deadlines that passed while an earlier tick was at work"),
    "frames_stale": ("trimvla_stale_frames", "Images that were refused for their age"),
    "gated": ("trimvla_gate_interventions", "Actions that the gate changed"),
    "holds": ("trimvla_holds", "Commands to hold"),
    "rung_switches": ("trimvla_rung_switches", "Changes of the bundle on the quality ladder"),
    "eased": (
        "trimvla_eased_commands",
        "Commands that were brought nearer to the one before, at a change of chunks",
    ),
    "dropped": ("trimvla_recording_drops", "Messages that the recording lost"),
}
#   duration of a process's report -> metric, what it is
DURATIONS = {
    "observation_age": (
        "trimvla_observation_age_seconds",
        "Age of an image when the policy took it up",
    ),
    "photon_to_action": (
        "trimvla_photon_to_action_seconds",
        "From an image's capture to its first command",
    ),
}
#   value of a process's report -> metric, what it is
VALUES = {
    "gripper_flips_per_minute": (
        "trimvla_gripper_flips_per_minute",
        "How often a gripper turned from open to closed or back",
    ),
    "held_share": ("trimvla_held_share", "Share of the commands that were holds"),
    "rung": (
        "trimvla_rung",
        "Number of the bundle on the quality ladder that thinks; 0 is the top",
    ),
}
#   prefix of a counter -> metric, what it counts, and the label that follows the prefix
LABELLED_COUNTERS = {
    "refused": ("trimvla_refused_messages", "What came on a topic and was no message", "topic"),
    "missed": (
        "trimvla_missed_messages",
        "Messages of a topic that were lost or displaced by newer ones",
        "topic",
    ),
    "held": ("trimvla_held_commands", "Commands to hold, by reason", "reason"),
}
#   prefix of a value -> metric, what it is, and the label that follows the prefix
LABELLED_VALUES = {
    "hz": ("trimvla_input_hz", "Messages per second on a topic, from its slowest sender", "topic"),
    "rate_ok": (
        "trimvla_input_rate_ok",
        "1 where messages come about as often as the topic promises",
        "topic",
    ),
    "senders": ("trimvla_input_senders", "Senders of a topic that are expected to go on", "topic"),
    "valid": (
        "trimvla_input_valid",
        "1 where the newest delivery on a topic was a message",
        "topic",
    ),
    "jerk_rms": (
        "trimvla_jerk_rms",
        "Root mean square of the commanded jerk [unit/s^3]",
        "dimension",
    ),
    "jerk_p99": (
        "trimvla_jerk_p99",
        "99 of 100 commanded jerks were no larger [unit/s^3]",
        "dimension",
    ),
    "limit_distance": (
        "trimvla_limit_distance",
        "Smallest distance of a command to its limits, as a share of the range",
        "dimension",
    ),
    "at_limit": (
        "trimvla_at_limit_share",
        "Share of the commands within 1 % of the range of a limit",
        "dimension",
    ),
}
EVENTS = ("trimvla_events", "Anything else that a process counts")
OTHERS = ("trimvla_value", "What else a process reports")
STAGE = ("trimvla_stage_seconds", "Duration of one part of a process's work")


@dataclass(frozen=True)
class MetricsConfig:
    """Whose reports are shown, and where."""

    processes: tuple[str, ...] = ("policy", "control")
    host: str = "127.0.0.1"
    port: int = 9464
    """0 takes any free one, which the log names."""

    def __post_init__(self) -> None:
        check_port(self.port, "'port'")


class Page:
    """A collector: the newest report of every process, as metrics."""

    def __init__(self) -> None:
        self.reports: Sequence[Report] = ()
        """Replaced as a whole: the page is drawn in another thread."""

    def collect(self) -> Iterator[Metric]:
        """All metrics as of now."""
        reports = self.reports
        now = monotonic_ns()
        yield from _counters(reports)
        yield from _durations(reports)
        yield from _gauges(reports, now)


def _counters(reports: Iterable[Report]) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for entry in reports:
        for name, count in entry.counters.items():
            (metric, text), extra = _metric_of(name, COUNTERS, LABELLED_COUNTERS, EVENTS, "event")
            labels = {"process": entry.process, **extra}
            family = families.setdefault(
                metric, CounterMetricFamily(metric, text, labels=list(labels))
            )
            family.add_metric(list(labels.values()), count)
    yield from families.values()


def _metric_of(
    name: str, table: Table, labelled: Labelled, other: tuple[str, str], label: str
) -> tuple[tuple[str, str], dict[str, str]]:
    """The metric and its text for a counter or value of a report, and its labels beside the
    process's.
    """
    prefix, _, rest = name.partition(".")
    if name in table:
        return table[name], {}
    if rest and prefix in labelled:
        *metric, key = labelled[prefix]
        return (metric[0], metric[1]), {key: rest}
    return other, {label: name}


def _durations(reports: Iterable[Report]) -> Iterator[Metric]:
    families: dict[str, HistogramMetricFamily] = {}
    for entry in reports:
        for name, summary in entry.latencies.items():
            metric, text = DURATIONS.get(name, STAGE)
            labels = ["process"] if name in DURATIONS else ["process", "stage"]
            family = families.setdefault(metric, HistogramMetricFamily(metric, text, labels=labels))
            family.add_metric(
                [entry.process, name][: len(labels)], _cumulated(summary), summary.sum / 1e3
            )
    yield from families.values()


def _cumulated(summary: Summary) -> list[tuple[str, float]]:
    """Upper bound [s] and how many were not above it."""
    counts = summary.buckets or (0,) * len(BOUNDS_S)
    return list(zip(BOUNDS_S, map(float, accumulate(counts)), strict=True))


def _gauges(reports: Iterable[Report], now_ns: int) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "trimvla_state", "1 for the state that a process is in", labels=["process", "state"]
    )
    silent = GaugeMetricFamily(
        "trimvla_report_age_seconds", "Since a process's last report", labels=["process"]
    )
    families: dict[str, GaugeMetricFamily] = {}
    for entry in reports:
        state.add_metric([entry.process, entry.state], 1)
        silent.add_metric([entry.process], (now_ns - entry.time_ns) / NS_PER_S)
        for name, number in entry.values.items():
            (metric, text), extra = _metric_of(name, VALUES, LABELLED_VALUES, OTHERS, "name")
            labels = {"process": entry.process, **extra}
            family = families.setdefault(
                metric, GaugeMetricFamily(metric, text, labels=list(labels))
            )
            family.add_metric(list(labels.values()), number)
    yield from (state, silent, *families.values())


def run(config: MetricsConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `metrics`, until `stop`. Raises ConfigError where the port is taken."""
    page = Page()
    registry = CollectorRegistry()
    registry.register(page)
    try:
        server = PageServer(config.host, config.port, make_wsgi_app(registry))
    except OSError as error:
        raise ConfigError(
            f"metrics: cannot listen on {config.host}:{config.port}: {error.strerror}"
        ) from None
    telemetry = Telemetry(NAME)
    telemetry.state = "serving"
    telemetry.values["port"] = server.server_port
    log.info("http://%s:%d/metrics", config.host, server.server_port)
    names = [report(name) for name in config.processes]
    reports_in = Subscriber(run_dir, [topic(name) for name in names])
    reporter = Reporter(run_dir, telemetry, reports_in)
    try:
        while not stop.is_set():
            reports_in.update(WAIT_S)
            messages = [reports_in[name].message for name in names]
            page.reports = [message for message in messages if isinstance(message, Report)]
            reporter.beat()
    finally:
        for closing in (server, reports_in, reporter):
            closing.close()
