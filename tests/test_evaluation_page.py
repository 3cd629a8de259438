"""The evaluation's page is what the kept results say, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from trimvla.launch.evaluation.kept import KeptEvaluation
from trimvla.launch.evaluation.page import (
    Args,
    device_rows,
    periods_of,
    run,
    task_of,
    widowx_rows,
)
from trimvla.launch.evaluation.results import CurveRow, Estimate
from trimvla.launch.tables import insert
from trimvla.policies.sizes.roofline import find_device
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.statistics import compare


def test_the_page_is_made_from_the_results(repo_root: Path, tmp_path: Path) -> None:
    page = Path(shutil.copy(repo_root / "docs" / "results" / "evaluation.md", tmp_path))
    results = Path(shutil.copytree(repo_root / "benchmarks", tmp_path / "benchmarks"))
    for picture in results.glob("*.png"):
        picture.unlink()
    told = run(Args(results=results, page=page, json=True))
    assert page.read_text() == (repo_root / "docs" / "results" / "evaluation.md").read_text(), (
        "make evaluation"
    )
    for name in told.pictures:
        assert (tmp_path / "evaluation" / name).stat().st_size > 5000
        assert (repo_root / "docs" / "results" / "evaluation" / name).exists()
    kept = sorted(path.name for path in (repo_root / "benchmarks").glob("*.png"))
    assert sorted(told.redrawn) == kept == sorted(path.name for path in results.glob("*.png"))


def test_a_latency_costs_whole_control_periods() -> None:
    assert [periods_of(ms, 5.0) for ms in (0, 57, 200, 201, 800)] == [0, 1, 1, 2, 4]


def point(bundle: str, ms: float, outcomes: str) -> CurveRow:
    won = outcomes.count("1")
    half = compare([1, 0], [1, 0], margin=0.05)
    return CurveRow(
        bundle=bundle,
        latency=f"{ms:g}",
        ms=ms,
        success_rate=won / len(outcomes),
        interval=(0.1, 0.9),
        successes=won,
        episodes=len(outcomes),
        mean_steps=None,
        held=0.0,
        outcomes=outcomes,
        against_top=None if bundle == "tabletop" else half,
    )


KEPT = KeptEvaluation(
    bundle="tabletop",
    success_rate=1.0,
    interval=(0.2, 1.0),
    episodes=1,
    successes=1,
    by_verb={"pick": (1, 1)},
    mean_steps=9.0,
    outcomes=[1],
)


def kept(**fields: object) -> KeptEvaluation:
    """Some evaluation with these fields."""
    return msgspec.structs.replace(KEPT, **fields)


def test_a_device_has_the_outcomes_of_as_many_periods_or_no_row() -> None:
    """At a fifth of Orin's roofline CogACT-Base takes some 524 ms, three periods; trimmed 287 ms,
    two.
    """
    curve = [
        point("tabletop", 200, "11110"),
        point("tabletop", 600, "10000"),
        point("tabletop-trimmed", 400, "11000"),
    ]
    _, *rows = device_rows({"x": kept(curve=curve)}, {"tabletop": 117.0, "another": 9.0})
    assert rows.pop(0)[1:6] == ("this machine", "measured", "tabletop", "117 ms", "1")
    assert [row[1:6] for row in rows] == [
        ("Orin", "100%", "tabletop", "105 ms", "1"),
        ("Orin", "20%", "tabletop", "524 ms", "3"),
        ("Orin", "20%", "tabletop-trimmed", "287 ms", "2"),
        ("Thor", "100%", "tabletop", "60 ms", "1"),
        ("Thor", "20%", "tabletop-trimmed", "207 ms", "2"),
    ]
    assert rows[0][6].startswith("80.0%")
    assert rows[2][7].startswith("+20.0"), "each at its own latency"
    assert rows[4][7] == "", "there is no dense one beside it"


def test_a_bundle_that_is_not_shipped_has_the_estimates_of_its_curve() -> None:
    curve = [point("out/mine", 105, "11110"), point("out/mine", 524, "10000")]
    estimate = Estimate(
        bundle="out/mine",
        estimate=True,
        device=find_device("orin"),
        attained=0.2,
        scale="cogact-base",
        ms=524.0,
        bundle_ms=1.0,
    )
    told = kept(curve=curve, estimates=(estimate,), env="simpler:widowx_stack_cube", seed=5000)
    _, row = device_rows({"x": told}, {})
    assert row[:6] == (
        "simpler:widowx_stack_cube, seeds from 5000",
        "Orin",
        "20%",
        "out/mine",
        "524 ms",
        "3",
    )


def test_every_task_that_was_ablated_has_its_rows(repo_root: Path, tmp_path: Path) -> None:
    told = json.loads((repo_root / "benchmarks" / "ablation.json").read_text())
    shutil.copy(repo_root / "benchmarks" / "ablation.json", tmp_path)
    assert len(widowx_rows(tmp_path)) == 1
    told["settings"]["env"] = "simpler:widowx_stack_cube"
    (tmp_path / "ablation_widowx_stack_cube.json").write_text(json.dumps(told))
    head, first, *rest = widowx_rows(tmp_path)
    assert len(first) == len(head)
    assert first[:2] == ("simpler:widowx_stack_cube", "dense")
    assert "FastV tokens (control)" in {row[1] for row in rest}


def test_a_task_says_its_seeds_and_how_often_the_policy_looks() -> None:
    assert task_of(kept(env="tabletop", seed=1000, execute=2)) == "tabletop"
    assert task_of(kept(env="simpler:x", seed=0, execute=1)) == "simpler:x, a look at every step"
    assert task_of(kept(env="simpler:x", seed=5000, execute=2)) == "simpler:x, seeds from 5000"


def test_marks_and_results_that_are_missing_are_said(repo_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the marks <!-- tasks -->"):
        insert("no marks", "tasks", "")
    (tmp_path / "ablation.json").write_text(json.dumps({})[:1])
    with pytest.raises(ConfigError, match=r"ablation\.json: expected a result"):
        run(Args(results=tmp_path, page=repo_root / "docs" / "results" / "evaluation.md"))


def test_a_report_needs_no_torch() -> None:
    """It is made from kept results, in a second; torch alone takes several to load."""
    code = "import trimvla.launch.verbs.report, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
