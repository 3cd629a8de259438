"""The process `control`: at every tick of a drift-free clock update, decide, publish.

Inference happens elsewhere.

Knows sockets and time; what to do is `controller.Controller`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Health,
    JointState,
    Operator,
    Refusal,
    Task,
)
from trimvla.runtime.bus.sockets import Input, Publisher, Subscriber
from trimvla.runtime.bus.switches import Words, enabling_switch, missing, stop_button
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.traffic import explain
from trimvla.runtime.clock import NS_PER_MS, NS_PER_S, Rate, monotonic_ns, to_ns
from trimvla.runtime.control.controller import ControlConfig, Controller, Decision, Inputs
from trimvla.runtime.control.hold_reasons import hold_kind
from trimvla.runtime.control.motion_quality import MotionMeter, as_values, figures
from trimvla.runtime.control.realtime import RealtimeConfig, set_up
from trimvla.runtime.log_limit import LimitedLog

log = logging.getLogger(__name__)
limited_log = LimitedLog(log)
REQUEST_S = 1.0  # so old a person's word to arm or reset may be
Kind = TypeVar("Kind", Task, JointState, ActionChunk, Refusal, Health, Operator)
WORD_ID = "operator_id"  # value of the report: the operator's last word, where it has a number
PRESSES = "estop_presses"  # counter of the report: ticks that saw the emergency stop pressed
SWITCHES = ("estop", "deadman")
BRAKE_S = 2.0  # of the 5 s that a supervisor gives a process to end
STOPS = "control stops"
MOTION_S = 0.5  # between two looks at how the robot was moved
SUBSCRIBES = (
    "task",
    "robot/state",
    "chunk",
    "refusal",
    "estop",
    "deadman",
    "health",
    "operator",
)


class ControlLoop:
    """One tick after the other, over real sockets."""

    def __init__(
        self, config: ControlConfig, inputs: Subscriber, commands: Publisher, telemetry: Telemetry
    ) -> None:
        self._controller = Controller(config)
        self._period_s = 1 / config.hz
        self._inputs = inputs
        self._commands = commands
        self._telemetry = telemetry
        self._words = Words()
        limits = config.limits
        self._motion = MotionMeter(config.kinds, config.hz, limits.low, limits.high)
        self._motion_ns = 0
        """When the report next takes up its figures."""

    def tick(self, tick_ns: int) -> Decision:
        """Update, decide, publish.

        `tick_ns` is the time for which the tick was planned; ages are those of now.

        An action that cannot be sent within a period of that moment, because the process was
        stopped, is not sent.
        """
        begin_ns = max(tick_ns, monotonic_ns())
        self._inputs.update()
        known = read_inputs(self._inputs, self._words, begin_ns)
        decision = self._explain(self._controller.decide(tick_ns, known, begin_ns))
        self._count_orders(known)
        decision = self._check_late(decision, begin_ns)
        self._publish(decision)
        self._telemetry.time_ns("tick", monotonic_ns() - begin_ns)
        return decision

    def _check_late(self, decision: Decision, begin_ns: int) -> Decision:
        """The decision, or a hold instead of an action that was decided too long ago."""
        late_ns = monotonic_ns() - begin_ns
        if (
            decision.command is None
            or decision.command.kind == "hold"
            or late_ns <= to_ns(self._period_s)
        ):
            return decision
        self._telemetry.count("withdrawn")
        limit = f"expected an action to be sent within {self._period_s * 1e3:.0f} ms"
        return self._controller.withdraw(
            begin_ns + late_ns, f"{limit}, got {late_ns / NS_PER_MS:.0f} ms"
        )

    def _explain(self, decision: Decision) -> Decision:
        """The decision; where the robot does not move, its reason names faults of the traffic
        too.
        """
        if decision.state == "running":
            return decision
        silent = [text for name in SWITCHES if (text := missing(self._inputs[name]))]
        reason = explain("; ".join([decision.reason, *silent]), self._inputs)
        command = decision.command
        if command is not None:
            command = msgspec.structs.replace(command, reason=reason)
        return replace(decision, reason=reason, command=command)

    def _count_orders(self, known: Inputs) -> None:
        """What people want: whoever repeats it until it counts looks at the report."""
        for word in known.requests:
            self._telemetry.count(f"operator_{word.request}")
        self._telemetry.values[WORD_ID] = float(self._words.last_id)
        self._telemetry.count(PRESSES, known.estop is not None and known.estop.pressed)

    def stop(self) -> None:
        """Leave the robot in hold.

        A velocity is braked as the limits allow first, for `BRAKE_S` at most.
        """
        end_ns = monotonic_ns() + to_ns(BRAKE_S)
        while not self._controller.at_rest and monotonic_ns() < end_ns:
            self._publish(self._controller.brake(monotonic_ns(), STOPS))
            time.sleep(self._period_s)
        self._motion_ns = 0
        self._publish(self._controller.hold(monotonic_ns(), STOPS))

    def _publish(self, decision: Decision) -> None:
        sent_ns = monotonic_ns()
        if decision.command is None:
            self._motion.restart()
        else:
            self._commands.send(msgspec.structs.replace(decision.command, time_ns=sent_ns))
            self._count(decision, decision.command, sent_ns)
            self._note_motion(decision.command, sent_ns)
        if decision.state != self._telemetry.state:
            self._telemetry.count(f"entered_{decision.state}")
            level = logging.WARNING if decision.state == "fault" else logging.INFO
            log.log(level, "%s -> %s %s", self._telemetry.state, decision.state, decision.reason)
        self._telemetry.state = decision.state
        self._telemetry.reason = decision.reason

    def _note_motion(self, command: Command, sent_ns: int) -> None:
        held = hold_kind(command.reason) if command.kind == "hold" else None
        self._motion.add(command.action, held)
        if held is not None:
            self._telemetry.count(f"held.{held}")
        if sent_ns >= self._motion_ns:
            self._motion_ns = sent_ns + to_ns(MOTION_S)
            self._telemetry.values.update(as_values(figures(self._motion.counts())))

    def _count(self, decision: Decision, command: Command, sent_ns: int) -> None:
        self._telemetry.count("holds" if command.kind == "hold" else "actions")
        self._telemetry.count("gated", decision.gated)
        self._telemetry.count("eased", decision.eased)
        if command.captured_ns is not None:
            age_ns = sent_ns - command.captured_ns
            self._telemetry.time_ns("action_age", age_ns)
            if decision.first_of_chunk:
                self._telemetry.time_ns("photon_to_action", age_ns)


def read_inputs(inputs: Subscriber, words: Words, now_ns: int) -> Inputs:
    """What the controller may know: nothing from senders that have fallen silent, no request from
    long ago.
    """
    requests = words.take(
        word for word in _fresh(inputs["operator"], Operator) if _is_recent(word, now_ns)
    )
    if any(word.request == "reset" for word in requests):
        for name in SWITCHES:
            inputs[name].forget_silent()
    return Inputs(
        task=_alive(inputs["task"], Task),
        robot=_alive(inputs["robot/state"], JointState),
        chunk=_newest(inputs["chunk"], ActionChunk),
        refusal=_newest(inputs["refusal"], Refusal),
        estop=stop_button(inputs["estop"]),
        deadman=enabling_switch(inputs["deadman"]),
        health=_newest(inputs["health"], Health),
        requests=requests,
    )


def _is_recent(word: Operator, now_ns: int) -> bool:
    """Whether a word still counts: what lets the robot move must not have waited while this process
    was stopped.
    """
    age_s = (now_ns - word.time_ns) / NS_PER_S
    recent = word.request == "disarm" or age_s <= REQUEST_S
    if not recent:
        limited_log.warning(
            "operator", "passed over the operator's '%s': it is %.1f s old", word.request, age_s
        )
    return recent


def _fresh(source: Input, kind: type[Kind]) -> list[Kind]:
    return [message for message in source.fresh if isinstance(message, kind)]


def _alive(source: Input, kind: type[Kind]) -> Kind | None:
    return _newest(source, kind) if source.alive else None


def _newest(source: Input, kind: type[Kind]) -> Kind | None:
    return source.message if isinstance(source.message, kind) else None


def run(config: ControlConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `control`, until `stop`; then it sends a hold."""
    telemetry = Telemetry("control")
    inputs = Subscriber(run_dir, [topic(name) for name in SUBSCRIBES])
    commands = Publisher(run_dir, topic("command", config.hz))
    reporter = Reporter(run_dir, telemetry, inputs)
    loop = ControlLoop(config, inputs, commands, telemetry)
    try:
        prepare(config.realtime, telemetry)
        keep_time(loop, config.hz, stop, reporter)
    finally:
        loop.stop()
        for closing in (reporter, commands, inputs):
            closing.close()


def prepare(config: RealtimeConfig, telemetry: Telemetry) -> None:
    """Set the process up for real time, after its threads have started; what was granted goes to
    log and report.
    """
    for grant in set_up(config):
        telemetry.values[f"realtime.{grant.name}"] = float(not grant.refused)
        level = logging.WARNING if grant.refused else logging.INFO
        log.log(
            level, "%s: asked for %s, got %s %s", grant.name, grant.asked, grant.got, grant.refused
        )


def keep_time(loop: ControlLoop, hz: float, stop: threading.Event, reporter: Reporter) -> None:
    """Tick at the rate until `stop`."""
    rate = Rate(hz, sleep=stop.wait)
    while True:
        tick_ns = rate.wait()
        if stop.is_set():
            return
        reporter.telemetry.time_ns("lag", monotonic_ns() - tick_ns)
        loop.tick(tick_ns)
        note_rate(rate, reporter.telemetry)
        reporter.beat()


def note_rate(rate: Rate, telemetry: Telemetry) -> None:
    """Put what the clock counted into the report."""
    report = rate.report()
    telemetry.values.update(
        hz_asked=report.asked_hz, hz_achieved=report.achieved_hz, worst_lag_ms=report.worst_lag_ms
    )
    for name in ("ticks", "late", "skipped"):
        telemetry.counters[name] = getattr(report, name)
