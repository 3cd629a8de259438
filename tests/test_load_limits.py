"""Limits of `trimvla load --assert`: each can fail, and files that are none are one error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from trimvla.launch.load.limits import LoadLimits, first_failure, judge, read_limits
from trimvla.launch.load.results import CommandCounts, LoadResult, LoadSize, Ticks
from trimvla.launch.system.results import ControlRate, FrameCounts, Percentiles
from trimvla.runtime.control.motion_quality import DimensionMotion, MotionFigures
from trimvla.runtime.errors import ConfigError

JERKY = DimensionMotion(
    dimension=0, kind="delta", jerk_rms=2.0, jerk_p99=3.0, limit_distance=0.1, at_limit=0.0
)
WELL = LoadResult(
    ok=True,
    seconds=10.0,
    load=LoadSize(cameras=1, width=64, height=48, camera_hz=25.0, policy_ms=100.0, priority=0),
    control_hz=ControlRate(50.0, 50.0),
    ticks=Ticks(500, 0, 0),
    lag_ms=Percentiles(0.1, 0.5, 1.0),
    tick_ms=Percentiles(0.1, 0.5, 1.0),
    period_ms=Percentiles(20.0, 21.0, 25.0),
    photon_to_action_ms=Percentiles(150.0, 200.0, 220.0),
    commands=CommandCounts(sent=500, holds=0, obeyed=500, lost=0, repeated=0, stale=0),
    frames=FrameCounts(250, 60, 0),
    frame_period_ms={"eye0": Percentiles(40.0, 41.0, 44.0)},
    frames_skipped=0,
    inference_ms=Percentiles(100.0, 105.0, 110.0),
    memory_mib={
        "camera-eye0": [50.0, 50.0, 50.0],
        "control": [40.0, 40.0, 40.0],
        "arm": [40.0, 40.0, 40.0],
        "policy": [60.0, 60.0, 60.0],
    },
    growth_mib=0.0,
    cores={"camera-eye0": 0.05, "control": 0.05, "arm": 0.03, "policy": 1.0, "all": 1.13},
    motion=MotionFigures(
        seconds=10.0,
        commands=500,
        gripper_flips_per_minute=6.0,
        held=0.0,
        holds={},
        dimensions=(JERKY,),
    ),
)
SLOW = Percentiles(90.0, 90.0, 400.0)
#   a limit of the shipped file, and a result that does not keep it
BROKEN = {
    "camera.eye0.period_off_ms": {"frame_period_ms": {"eye0": SLOW}},
    "camera.eye0.gap_ratio": {"frame_period_ms": {"eye0": Percentiles(40.0, 40.0, 120.0)}},
    "camera.skipped": {"frames_skipped": 1},
    "camera.stale_share": {"frames": FrameCounts(100, 50, 5)},
    "control.rate_off": {"control_hz": ControlRate(50.0, 49.0)},
    "control.late_share": {"ticks": Ticks(500, 50, 0)},
    "control.skipped_ticks": {"ticks": Ticks(500, 0, 1)},
    "control.lag_p99_ms": {"lag_ms": Percentiles(0.1, 9.0, 9.0)},
    "control.period_deviation": {"period_ms": Percentiles(20.0, 30.0, 31.0)},
    "control.gap_ratio": {"period_ms": Percentiles(20.0, 21.0, 61.0)},
    "control.lost": {"commands": structs.replace(WELL.commands, lost=1)},
    "control.repeated": {"commands": structs.replace(WELL.commands, repeated=1)},
    "control.photon_to_action_p99_ms": {"photon_to_action_ms": Percentiles(150.0, 500.0, 600.0)},
    "motion.held_share": {"motion": structs.replace(WELL.motion, held=0.5)},
    "cores.control": {"cores": {**WELL.cores, "control": 0.9}},
    "cores.camera-eye0": {"cores": {**WELL.cores, "camera-eye0": 0.9}},
    "memory_mib.policy": {"memory_mib": {**WELL.memory_mib, "policy": [60.0, 60.0, 900.0]}},
    "growth_mib": {"growth_mib": 3.0},
}


def test_the_shipped_limits_are_kept_by_a_machine_that_is_well() -> None:
    rows = judge(WELL, read_limits(Path("two-cores")))
    assert len(rows) >= len(BROKEN)
    assert first_failure(rows) is None


@pytest.mark.parametrize("name", BROKEN)
def test_every_limit_can_fail_and_is_named(name: str) -> None:
    rows = judge(structs.replace(WELL, **BROKEN[name]), read_limits(Path("two-cores")))
    assert name in [row.name for row in rows if not row.ok]
    error = first_failure(rows)
    assert error is not None
    assert error.startswith("expected at most ")


def test_limits_on_motion_alone() -> None:
    limits = msgspec.convert(
        {"motion": {"jerk_rms": 1.0, "gripper_flips_per_minute": 6.0}}, LoadLimits
    )
    rows = judge(WELL, limits)
    assert [(row.name, row.ok) for row in rows] == [
        ("motion.jerk_rms", False),
        ("motion.gripper_flips_per_minute", True),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[control]\nlags = 1.0\n", "lags"),
        ("[control]\nlost = -1\n", "lost"),
        ("[control]\nlost = 'none'\n", "lost"),
        ("", "expected at least one limit"),
        ("[control", "limits"),
    ],
)
def test_a_file_that_is_none_is_one_error(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_limits(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="nowhere"):
        read_limits(tmp_path / "nowhere.toml")


def test_a_process_that_did_not_run_is_an_error() -> None:
    limits = msgspec.convert({"cores": {"gripper": 0.1}}, LoadLimits)
    with pytest.raises(ConfigError, match="in 'cores', got 'gripper'"):
        judge(WELL, limits)
