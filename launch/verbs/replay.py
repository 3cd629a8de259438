"""`trimvla replay`: every recorded policy call once more, with the recorded noise; the actions must
be the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.motion.recorded import recorded_motion
from trimvla.launch.options import Options
from trimvla.launch.replay.recorded_policy import choose_bundles, open_rungs
from trimvla.launch.replay.report import as_table
from trimvla.launch.replay.results import ReplayResult, difference_result
from trimvla.launch.replay.since_then import changes, check_recorded
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record.recording import Recording
from trimvla.runtime.record.replay import replay


@dataclass(frozen=True)
class Args(Options):
    """Repeat a recording's policy calls.

    Succeeds if every action is the same, bit for bit by default.
    """

    file: Positional[Path]
    """A recording, complete or cut off."""

    bundle: str | None = None
    """A bundle's path or a shipped bundle's name; by default the recorded ones, if they are shipped
    bundles.
    """

    recorded_paths: bool = False
    """Run bundles from the places that the recording names: for recordings of your own."""

    backend: str | None = None
    """What runs it; the recorded one by default, unless that is code of somebody's own. Also
    module:attribute of your own (docs/guides/own-backend.md)."""

    provider: str | None = None
    """What executes inside the backend; the recorded one by default."""

    threads: int | None = None
    """Of the backend; as recorded by default."""

    tolerance: float = 0.0
    """Differences up to this are no failure, in the robot's units; 0: the same bits."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if self.tolerance < 0:
            raise ConfigError(f"expected a --tolerance of at least 0, got {self.tolerance}")


def run(args: Args) -> ReplayResult:
    """Repeat, compare, report."""
    recording = Recording(args.file)
    names = choose_bundles(recording, args.bundle, args.recorded_paths)
    rungs = open_rungs(recording, names, args.backend, args.provider, args.threads)
    check_recorded(recording, rungs)
    policy = next(iter(rungs.values()))
    start = time.monotonic()
    outcome = replay(recording, policy, rungs)
    result = ReplayResult(
        ok=outcome.same(args.tolerance),
        calls=outcome.calls,
        repeated=outcome.repeated,
        exact=outcome.exact,
        worst=difference_result(outcome.worst),
        left_out=outcome.left_out,
        cut_off=recording.cut_off,
        differs_here=changes(recording),
        motion=recorded_motion(recording),
        runs=policy.describe(),
        seconds=round(time.monotonic() - start, 2),
    )
    for rung in rungs.values():
        rung.close()
    args.console().print(as_table(result))
    return result
