"""What is asked of the operating system is read back; what it refuses is said.

Each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from trimvla.runtime.control.realtime import RealtimeConfig, RealtimeSetting, set_up
from trimvla.runtime.errors import ConfigError

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
ASK = """
import dataclasses, gc, json, os, sys, threading
from trimvla.runtime.control.realtime import RealtimeConfig, locked_kib, set_up
wait = threading.Event()
other = threading.Thread(target=wait.wait)
other.start()
try:
    grants = set_up(RealtimeConfig(**json.loads(sys.argv[1])))
    print(json.dumps({
        "grants": [dataclasses.asdict(grant) for grant in grants],
        "policies": [os.sched_getscheduler(thread) for thread in (0, other.native_id)],
        "cores": [sorted(os.sched_getaffinity(thread)) for thread in (0, other.native_id)],
        "locked_kib": locked_kib(),
        "frozen": gc.get_freeze_count(),
    }))
finally:
    wait.set()
"""


def ask(**wishes: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(wishes)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_asked_by_default() -> None:
    assert set_up(RealtimeConfig()) == ()


@linux
def test_every_grant_is_true_and_every_refusal_has_a_reason() -> None:
    core = min(os.sched_getaffinity(0))
    answer = ask(priority=1, cores=[core], lock_memory=True, freeze_gc=True)
    grants = {grant["name"]: RealtimeSetting(**grant) for grant in answer["grants"]}
    assert list(grants) == ["gc.freeze", "mlockall", "cores", "SCHED_FIFO"]
    assert (grants["SCHED_FIFO"].refused == "") == (answer["policies"] == [os.SCHED_FIFO] * 2)
    assert (grants["mlockall"].refused == "") == (answer["locked_kib"] > 0)
    assert grants["cores"].refused == "" and answer["cores"] == [[core]] * 2
    assert grants["gc.freeze"].refused == "" and answer["frozen"] > 1000
    assert all(grant.got for grant in grants.values())


@linux
def test_cores_that_there_are_not_are_refused_with_those_that_there_are() -> None:
    [grant] = ask(cores=[1023])["grants"]
    assert "there are cores" in grant["refused"] and grant["got"] != "1023"


@linux
def test_a_refusal_is_an_error_where_it_is_required() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps({"cores": [1023], "required": True})],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (
        done.returncode != 0
        and "expected all of 'realtime' to be granted, got cores: " in done.stderr
    )


@pytest.mark.parametrize("fields", [{"priority": 100}, {"priority": -1}, {"cores": (-1,)}])
def test_wishes_that_make_no_sense_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        RealtimeConfig(**fields)
