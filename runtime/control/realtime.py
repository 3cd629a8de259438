"""Requests from the operating system what a control loop needs: priority, cores, memory that stays,
no collector's pauses.

One call, `set_up`, that returns for each wish whether it was granted, as read back from the system,
and why not. Knows Linux; elsewhere the wishes are refused, with that reason. Changes only its own
process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimvla.runtime.errors import ConfigError

MAX_PRIORITY = 99
# MCL_CURRENT and MCL_FUTURE
LOCK_CURRENT = 1
LOCK_FUTURE = 2
TASKS = Path("/proc/self/task")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class RealtimeConfig:
    """What to ask for; by default nothing."""

    priority: int = 0
    """Under SCHED_FIFO, 1 to 99; 0 keeps the ordinary scheduler.

    Leave 50 and more to the kernel's own threads.
    """
    cores: tuple[int, ...] = ()
    """On which to run; empty: on any."""
    lock_memory: bool = False
    """Keep all pages in memory (mlockall)."""
    freeze_gc: bool = False
    """Exempt everything that was made so far from garbage collection, so that a collection is
    short.
    """
    required: bool = False
    """Whether a wish that is not granted is an error."""

    def __post_init__(self) -> None:
        if not 0 <= self.priority <= MAX_PRIORITY:
            raise ConfigError(f"expected 0 to {MAX_PRIORITY}, got {self.priority!r} for 'priority'")
        if any(core < 0 for core in self.cores):
            raise ConfigError(f"expected core numbers from 0 on, got {self.cores} for 'cores'")


@dataclass(frozen=True)
class RealtimeSetting:
    """One wish: what was asked for, and what came of it.

    `refused` is why not; empty if it was granted.
    """

    name: str
    asked: str
    got: str
    refused: str = ""


def set_up(config: RealtimeConfig) -> tuple[RealtimeSetting, ...]:
    """Ask for everything in `config`, for all threads of this process; one RealtimeSetting for each
    wish.

    Raises ConfigError, after everything was tried, if a wish is refused and `required` is set.
    """
    wishes: list[tuple[bool, Callable[[], RealtimeSetting]]] = [
        (config.freeze_gc, _freeze_gc),
        (config.lock_memory, _lock_memory),
        (bool(config.cores), lambda: _set_cores(config.cores)),
        (config.priority > 0, lambda: _set_priority(config.priority)),
    ]
    grants = tuple(ask() for wanted, ask in wishes if wanted)
    refused = [f"{grant.name}: {grant.refused}" for grant in grants if grant.refused]
    if refused and config.required:
        raise ConfigError("expected all of 'realtime' to be granted, got " + "; ".join(refused))
    return grants


def _freeze_gc() -> RealtimeSetting:
    gc.collect()
    gc.freeze()
    return RealtimeSetting("gc.freeze", "yes", f"{gc.get_freeze_count()} objects")


def _lock_memory() -> RealtimeSetting:
    """mlockall; later pages too only where no limit could make a later allocation fail."""
    asked = "all pages"
    try:
        import resource

        unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
        libc = ctypes.CDLL(None, use_errno=True)
        flags = LOCK_CURRENT | (LOCK_FUTURE if unlimited or os.geteuid() == 0 else 0)
        code = libc.mlockall(flags)
    except (ImportError, AttributeError, OSError, TypeError) as error:
        return RealtimeSetting("mlockall", asked, "nothing", f"{sys.platform} has none: {error}")
    if code != 0:
        reason = os.strerror(ctypes.get_errno())
        return RealtimeSetting("mlockall", asked, "nothing", f"{reason}; raise the limit 'memlock'")
    return RealtimeSetting(
        "mlockall",
        asked,
        f"{locked_kib() / 1024:.0f} MiB{'' if flags & LOCK_FUTURE else ', of now only'}",
    )


def locked_kib() -> int:
    """Memory of this process that is locked [KiB], as the kernel counts it."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmLck:")), 0)


def _set_cores(cores: tuple[int, ...]) -> RealtimeSetting:
    asked = _words(cores)
    if sys.platform != "linux":
        return RealtimeSetting("cores", asked, "any", f"{sys.platform} has no affinity")
    refused = ""
    try:
        for thread in _threads():
            os.sched_setaffinity(thread, cores)
    except OSError as error:
        refused = f"{error.strerror}; there are cores {_words(tuple(os.sched_getaffinity(0)))}"
    got = tuple(sorted(os.sched_getaffinity(0)))
    if not refused and set(got) != set(cores):
        refused = f"the system gave cores {_words(got)}"
    return RealtimeSetting("cores", asked, _words(got), refused)


def _set_priority(priority: int) -> RealtimeSetting:
    asked = f"priority {priority}"
    if sys.platform != "linux":
        return RealtimeSetting(
            "SCHED_FIFO", asked, "the ordinary scheduler", f"{sys.platform} has none"
        )
    refused = ""
    try:
        for thread in _threads():
            os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        refused = f"{error.strerror}; raise the limit 'rtprio'"
    fifo = os.sched_getscheduler(0) == os.SCHED_FIFO
    got = f"priority {os.sched_getparam(0).sched_priority}" if fifo else "the ordinary scheduler"
    return RealtimeSetting("SCHED_FIFO", asked, got, refused)


def _threads() -> list[int]:
    """All threads of this process; those that start later inherit from the one that starts them."""
    return [int(path.name) for path in TASKS.iterdir()]


def _words(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))
