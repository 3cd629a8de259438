"""A flood leaves a few lines and a count, whoever causes it and whatever it contains."""

from __future__ import annotations

import logging

import pytest

from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.log_limit import EveryCallLimit, Limit, LimitedLog

log = logging.getLogger("trimvla.test")


class Clock:
    """A clock that a test sets [s]."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> int:
        return int(self.now_s * NS_PER_S)


def test_a_few_pass_and_the_rest_are_counted() -> None:
    limit = Limit(most=2, period_s=10.0)
    assert [limit.admit("a", ns) for ns in range(5)] == [0, 0, None, None, None]
    assert limit.admit("b", 5) == 0, "another kind is not held back"
    assert limit.admit("a", 10 * NS_PER_S) == 3, (
        "the next period begins with what the last one withheld"
    )
    assert limit.overdue(11 * NS_PER_S) == {}


def test_kinds_that_strangers_invent_cost_no_memory() -> None:
    limit = Limit(most=1, period_s=10.0, max_kinds=8)
    admitted = [limit.admit(f"stranger {number}", 0) for number in range(10_000)]
    assert sum(count is not None for count in admitted) <= 10
    assert len(limit._windows) <= 9
    assert limit.admit("late", 11 * NS_PER_S) == 0, "room again once their period is over"


def test_a_flood_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limited = LimitedLog(log, most=2, period_s=10.0, now=clock)
    for number in range(4_314):
        limited.warning("10.0.0.7", "refused %s: message %d", "10.0.0.7", number)
    clock.now_s = 11.0
    limited.warning("10.0.0.8", "refused %s", "10.0.0.8")
    assert [record.getMessage() for record in caplog.records] == [
        "refused 10.0.0.7: message 0",
        "refused 10.0.0.7: message 1",
        "10.0.0.7 (and 4,312 more of this kind in 10 s)",
        "refused 10.0.0.8",
    ]


def test_what_is_withheld_at_the_end_is_counted_too(caplog: pytest.LogCaptureFixture) -> None:
    limited = LimitedLog(log, most=1)
    for _ in range(3):
        limited.error("x", "broken")
    limited.flush()
    limited.flush()
    assert [record.getMessage() for record in caplog.records] == [
        "broken",
        "x (and 2 more of this kind in 60 s)",
    ]


def test_nobody_forges_a_line_or_fills_a_disk_with_one(caplog: pytest.LogCaptureFixture) -> None:
    LimitedLog(log).warning(
        "x", "refused %s", "a\nERROR trimvla: the robot is on fire\x1b[2J" + "z" * 10_000_000
    )
    [record] = caplog.records
    assert record.getMessage().startswith(
        "refused a\\nERROR trimvla: the robot is on fire\\x1b[2Jzzz"
    )
    assert len(record.getMessage()) == 1000


def test_a_traceback_comes_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    limited = LimitedLog(log, most=1)
    for _ in range(3):
        try:
            raise ValueError("no")
        except ValueError:
            limited.exception("x", "a question failed")
    assert [bool(record.exc_info) for record in caplog.records] == [True]


def test_the_backstop_counts_by_line_of_code(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    caplog.handler.addFilter(backstop := EveryCallLimit(most=3, period_s=10.0, now=clock))
    try:
        for number in range(1003):
            if number == 1002:
                clock.now_s = 11.0
            log.warning("broken message %d", number)
        log.warning("another line")
    finally:
        caplog.handler.removeFilter(backstop)
    assert [record.getMessage() for record in caplog.records] == [
        "broken message 0",
        "broken message 1",
        "broken message 2",
        "broken message 1002 (and 999 more of this kind in 10 s)",
        "another line",
    ]
