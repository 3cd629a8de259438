"""`trimvla replay`: every recorded policy call once more, with the recorded noise; the actions must
be the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.motion.recorded import recorded_motion
from trimvla.launch.motion.table import jerk_words, motion_line
from trimvla.launch.options import Options
from trimvla.launch.result import VerbResult
from trimvla.launch.system.action_check import check_bundle
from trimvla.launch.system.recorded_policy import choose_bundles, open_rungs
from trimvla.runtime.bundle.action_meaning import ActionMeaning, meaning_of
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.control.motion_quality import MotionFigures
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.record.recorder import processor
from trimvla.runtime.record.recording import Recording, fact
from trimvla.runtime.record.replay import Difference, replay

COMPARED = ("trimvla", "onnxruntime", "numpy", "pillow")


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


class DifferenceResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The call that differs most from the recorded one."""

    chunk: int
    """The chunk's sequence number."""
    episode: int
    """The episode's number."""
    frame: int
    """The image's sequence number."""
    largest: float | None
    """The largest difference, in the robot's units; none where the shapes differ."""
    row: int
    """Row of the chunk."""
    dimension: int
    """Dimension of the action."""
    why: str | None = None
    """Why there is no largest difference; left out where there is one."""


class ReplayResult(VerbResult, frozen=True, kw_only=True):
    """`ok`: every call was repeated, with the same actions within the tolerance."""

    calls: int
    """Policy calls in the recording."""
    repeated: int
    """Of them, those that could be made again."""
    exact: int
    """Of them, those that gave the same bits."""
    worst: DifferenceResult | None
    """None where all are exact."""
    left_out: dict[str, int]
    """Why a call could not be repeated -> how many."""
    cut_off: bool
    """Whether the recording ends in the middle."""
    differs_here: dict[str, tuple[str, str]]
    """What may change the last bits: versions and processor, then and now."""
    motion: MotionFigures | None
    """How the robot was made to move by the recorded commands; none where none was recorded, or
    the recording does not tell what they mean."""
    runs: dict[str, dict[str, str]]
    """Stage -> what ran it."""
    seconds: float
    """Of all repeated calls [s]."""


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


def check_recorded(recording: Recording, rungs: dict[str, Policy]) -> None:
    """Raise ConfigError where a recorded chunk's actions mean something else than those of the
    policy that repeats it.

    A chunk from before they named their kinds is compared by its rate.
    """
    first = next(iter(rungs))
    recorded = {(chunk.rung, chunk.kinds, chunk.control_hz) for chunk in chunks(recording)}
    for rung, kinds, hz in sorted(recorded):
        name = rung if rung in rungs else first
        got = meaning_of(rungs[name].manifest.action)
        check_bundle(name, got, ActionMeaning(kinds or got.kinds, hz), f"{recording.path}")


def chunks(recording: Recording) -> Iterator[ActionChunk]:
    """All recorded chunks."""
    for entry in recording.entries(lambda name: name == "chunk"):
        if isinstance(entry.message, ActionChunk):
            yield entry.message


def changes(recording: Recording) -> dict[str, tuple[str, str]]:
    """What is not as it was when it was recorded: then and now. Each of these may change the last
    bits."""
    versions = fact(recording, "versions", dict[str, str]) or {}
    pairs = {name: (versions.get(name, "unknown"), version(name)) for name in COMPARED}
    pairs["processor"] = (fact(recording, "processor", str) or "unknown", processor())
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def difference_result(worst: Difference | None) -> DifferenceResult | None:
    """JSON has no infinity: other shapes have no largest difference."""
    if worst is None:
        return None
    other_shape = math.isinf(worst.largest)
    return DifferenceResult(
        chunk=worst.chunk,
        episode=worst.episode,
        frame=worst.frame,
        largest=None if other_shape else worst.largest,
        row=worst.row,
        dimension=worst.dimension,
        why="another shape" if other_shape else None,
    )


def as_table(result: ReplayResult) -> Table:
    """The card."""
    table = Table(title="trimvla replay", show_header=False, title_justify="left")
    table.add_row("calls", f"{result.calls} recorded, {result.repeated} repeated")
    table.add_row("same to the bit", f"{result.exact} of {result.repeated}")
    if result.worst is not None:
        worst = result.worst
        where = f"dimension {worst.dimension} of row {worst.row}, chunk {worst.chunk}"
        largest = worst.why if worst.largest is None else f"{worst.largest:.3g}"
        table.add_row("largest difference", f"{largest} in {where}")
    for why, count in result.left_out.items():
        table.add_row("left out", f"{count}: {why}")
    for name, (then, now) in result.differs_here.items():
        table.add_row(name, f"{then} then, {now} now")
    if result.motion is not None:
        table.add_row("motion", motion_line(result.motion))
        table.add_row("jerk", jerk_words(result.motion))
    if result.cut_off:
        table.add_row("file", "cut off; read up to its last whole chunk")
    return table
