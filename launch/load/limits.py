"""Limits that a machine must keep under load, and whether it did: `trimvla load --assert`.

Pure: limits from a TOML file, figures from a result. In the form of openpilot's on-device
assertions: periods, gaps, losses, processor time and memory of each process, and how the arm would
move. What a file leaves out is not asserted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from trimvla.launch.load.results import Assertion, LoadResult
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import convert, read_toml

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "limits"
MS_A_SECOND = 1e3

Bound = Annotated[float, msgspec.Meta(ge=0)]


class CameraLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every camera."""

    period_off_ms: Bound | None = None
    """How far the p99 of the frame period may be above the configured one [ms]."""
    gap_ratio: Bound | None = None
    """The longest frame period over the configured one."""
    skipped: Bound | None = None
    """Frame numbers that a camera left out."""
    stale_share: Bound | None = None
    """Images that the policy refused for their age, as a share of all that were published."""


class ControlLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the control loop and what the arm received."""

    rate_off: Bound | None = None
    """How far the achieved rate may be from the configured one, relative."""
    late_share: Bound | None = None
    """Ticks that began a tenth of a period late, as a share of all."""
    skipped_ticks: Bound | None = None
    """Ticks that were left out."""
    lag_p99_ms: Bound | None = None
    """From when a tick was due to its begin [ms]."""
    period_deviation: Bound | None = None
    """The p99 of the period between commands, as the arm receives them, over the configured one,
    less 1."""
    gap_ratio: Bound | None = None
    """The longest period between commands over the configured one."""
    lost: Bound | None = None
    """Commands that never came to the arm."""
    repeated: Bound | None = None
    """Commands that came twice."""
    photon_to_action_p99_ms: Bound | None = None
    """From an image's capture to the command that came of it [ms]."""


class MotionLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of what the commands make of an arm."""

    held_share: Bound | None = None
    """Commands that were holds, as a share of all."""
    jerk_rms: Bound | None = None
    """The largest of all dimensions [unit/s^3]."""
    gripper_flips_per_minute: Bound | None = None
    """How often the gripper turned."""


class LoadLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `--assert` reads."""

    camera: CameraLimits = CameraLimits()
    control: ControlLimits = ControlLimits()
    motion: MotionLimits = MotionLimits()
    cores: dict[str, Bound] = {}
    """Process -> processor cores that it may use; `camera` is each of the cameras, `all` their sum
    with all others."""
    memory_mib: dict[str, Bound] = {}
    """Process -> resident memory at the end [MiB]; likewise."""
    growth_mib: Bound | None = None
    """The most that a process may grow from the middle to the end [MiB]."""


def read_limits(named: Path) -> LoadLimits:
    """The limits of a TOML file, or of a shipped one by its name.

    Raises ConfigError for what is no such file, and for a limit that nobody knows.
    """
    shipped = SHIPPED / f"{named}.toml"
    path = shipped if not named.exists() and shipped.is_file() else named
    limits = convert(read_toml(path, "limits for `trimvla load --assert`"), LoadLimits, path)
    if limits == LoadLimits():
        raise ConfigError(f"{path}: expected at least one limit, got none")
    return limits


def judge(result: LoadResult, limits: LoadLimits) -> list[Assertion]:
    """Every limit with what was measured, in the order of the file's tables.

    Raises ConfigError for a process that did not run.
    """
    found = [
        *_cameras(result, limits.camera),
        *_control(result, limits.control),
        *_motion(result, limits.motion),
        *_processes("cores", result.cores, limits.cores),
        *_processes(
            "memory_mib",
            {name: values[-1] for name, values in result.memory_mib.items()},
            limits.memory_mib,
        ),
        _row("growth_mib", limits.growth_mib, result.growth_mib),
    ]
    return [row for row in found if row is not None]


def first_failure(rows: list[Assertion]) -> str | None:
    """The first limit that was not kept, in words; None where all were."""
    failed = next((row for row in rows if not row.ok), None)
    if failed is None:
        return None
    return f"expected at most {failed.limit:g} for '{failed.name}', got {failed.measured:g}"


def _cameras(result: LoadResult, limits: CameraLimits) -> Iterator[Assertion | None]:
    period_ms = MS_A_SECOND / result.load.camera_hz
    frames = result.frames
    for name, period in result.frame_period_ms.items():
        where = f"camera.{name}"
        yield _row(f"{where}.period_off_ms", limits.period_off_ms, period.p99 - period_ms)
        yield _row(f"{where}.gap_ratio", limits.gap_ratio, period.max / period_ms)
    yield _row("camera.skipped", limits.skipped, result.frames_skipped)
    yield _row("camera.stale_share", limits.stale_share, frames.stale / max(1, frames.published))


def _control(result: LoadResult, limits: ControlLimits) -> Iterator[Assertion | None]:
    rate = result.control_hz
    ticks = result.ticks
    period_ms = MS_A_SECOND / rate.asked
    measured = {
        "rate_off": abs(rate.achieved / rate.asked - 1),
        "late_share": ticks.late / max(1, ticks.ticks),
        "skipped_ticks": ticks.skipped,
        "lag_p99_ms": result.lag_ms.p99,
        "period_deviation": result.period_ms.p99 / period_ms - 1,
        "gap_ratio": result.period_ms.max / period_ms,
        "lost": result.commands.lost,
        "repeated": result.commands.repeated,
        "photon_to_action_p99_ms": result.photon_to_action_ms.p99,
    }
    for name, value in measured.items():
        yield _row(f"control.{name}", getattr(limits, name), value)


def _motion(result: LoadResult, limits: MotionLimits) -> Iterator[Assertion | None]:
    motion = result.motion
    jerks = [each.jerk_rms for each in motion.dimensions if each.jerk_rms is not None]
    flips = motion.gripper_flips_per_minute or 0.0
    yield _row("motion.held_share", limits.held_share, motion.held)
    yield _row("motion.jerk_rms", limits.jerk_rms, max(jerks, default=0.0))
    yield _row("motion.gripper_flips_per_minute", limits.gripper_flips_per_minute, flips)


def _processes(
    what: str, measured: Mapping[str, float], limits: Mapping[str, float]
) -> Iterator[Assertion | None]:
    for name, limit in limits.items():
        ran = [each for each in measured if each == name or each.startswith(f"{name}-")]
        if not ran:
            raise ConfigError(f"expected a process of {sorted(measured)} in '{what}', got '{name}'")
        for each in ran:
            yield _row(f"{what}.{each}", limit, measured[each])


def _row(name: str, limit: float | None, measured: float) -> Assertion | None:
    if limit is None:
        return None
    return Assertion(name=name, limit=limit, measured=round(measured, 4), ok=measured <= limit)
