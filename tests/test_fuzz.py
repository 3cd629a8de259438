"""A short run of tests/fuzz.py; the long one is `python -m tests.fuzz --messages 1000000`."""

from __future__ import annotations

import mmap
import time

import pytest

from tests.fuzz import MESSAGES, OBSERVATIONS, Target, all_targets, fuzz
from trimvla.runtime.bus.topics import TOPICS
from trimvla.runtime.errors import TrimvlaError, WireError


@pytest.mark.filterwarnings("ignore")
def test_no_decoder_meets_bytes_that_it_cannot_refuse():
    targets = all_targets()
    found = fuzz(targets, 250 * len(targets), seed=7)
    assert found.ok, found.summary()
    # the mutations are wrong enough
    assert all(found.refused[target.name] > 20 for target in targets)
    assert all(found.accepted[target.name] > 0 for target in targets)  # and not always


def test_valid_messages_are_accepted_by_every_target():
    for target in all_targets():
        for seed in target.seeds:
            target.decode(list(seed))
    assert set(TOPICS) < set(MESSAGES) and len(OBSERVATIONS) == 4


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda parts: {}[parts[0]], "KeyError"),
        (lambda parts: time.sleep(1.1), ""),
        (lambda parts: _raise(TrimvlaError("another error than the declared one")), "TrimvlaError"),
    ],
)
def test_the_fuzz_finds_crashes_and_hangs(wrong, what):
    found = fuzz([Target("bad", [[b"abc"]], wrong, (WireError,))], 2)
    assert not found.ok
    assert not what or what in found.crashes[0]["error"]


def test_the_fuzz_finds_growth():
    kept: list[mmap.mmap] = []

    def leak(parts: list[bytes]) -> None:
        """Pages of its own: what other tests have freed cannot be taken for it."""
        page = mmap.mmap(-1, 1 << 20)
        page.write(bytes([1]) * (1 << 20))
        kept.append(page)

    found = fuzz([Target("leak", [[b"abc"]], leak, (WireError,))], 100)
    assert found.growth_mib > 24 and not found.ok


def _raise(error: Exception) -> None:
    raise error
