"""Work over processes: everything arrives, errors keep their kind, and nothing is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing import active_children

import pytest
from spread_work import divide, refuse, squares

from trimvla.runtime.errors import BundleError
from trimvla.sim.evaluation.workers import WorkerError, spread


def vanish(items: Sequence[int]) -> Iterator[int]:
    yield from items
    os._exit(3)


def sleep(items: Sequence[int]) -> Iterator[int]:
    yield from items
    time.sleep(600)


def test_all_results_arrive_from_as_many_processes_as_asked() -> None:
    results = list(spread(squares, range(5), 2))
    assert sorted(value for value, _ in results) == [0, 1, 4, 9, 16]
    assert len({pid for _, pid in results} - {os.getpid()}) == 2
    assert not active_children()


def test_no_process_without_work() -> None:
    assert len({pid for _, pid in spread(squares, [3], 8)}) == 1
    assert list(spread(squares, [], 2)) == []


def test_an_expected_error_keeps_its_kind() -> None:
    results = spread(refuse, [1], 1)
    assert next(results) == 1
    with pytest.raises(BundleError, match="not found"):
        next(results)
    assert not active_children()


def test_an_unexpected_error_says_where_it_came_from() -> None:
    with pytest.raises(WorkerError, match=r"(?s)in divide.*ZeroDivisionError"):
        list(spread(divide, [0], 1))


def test_a_worker_that_vanishes_is_an_error() -> None:
    with pytest.raises(WorkerError, match="with status 3"):
        list(spread(vanish, [1, 2], 1))


def test_leaving_early_stops_the_workers() -> None:
    results = spread(sleep, [1, 2], 2)
    next(results)
    assert len(active_children()) == 2
    results.close()
    assert not active_children()
