"""The ablation: every row asks for what its name says, the report adds up, a stopped run goes
on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from trimvla.launch.ablation import bundles as ablation_bundles
from trimvla.launch.ablation.bundles import make_bundles
from trimvla.launch.ablation.play import read_rounds
from trimvla.launch.ablation.report import NAME, as_markdown, cells
from trimvla.launch.ablation.results import AblationRow, Timing
from trimvla.launch.ablation.rows import DENSE, ROWS, Amounts, request
from trimvla.launch.console import Progress
from trimvla.launch.tables import insert
from trimvla.launch.verbs.ablate import Args
from trimvla.policies.trimming.planner import Request
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.rollout import choose_seeds
from trimvla.sim.evaluation.statistics import Comparison
from trimvla.sim.evaluation.success import Outcome

AMOUNTS = Amounts(layers=11, mlp_keep=0.75, tokens=56, after=5, cache_interval=5)
BY_NAME = {row.name: row for row in ROWS}
TIMES = Timing(p50_ms=20.0, p99_ms=22.0, ratio_to_dense=2.0, ratio_low=1.9, ratio_high=2.1)
PAIRED = Comparison(
    difference=-0.01,
    interval=(-0.04, 0.02),
    bootstrap_interval=(-0.04, 0.02),
    confidence=0.95,
    both=230,
    candidate_only=10,
    reference_only=13,
    neither=47,
    p_value=0.68,
    margin=0.05,
    lower_bound=-0.04,
    non_inferior=True,
)
LINE = AblationRow(
    name="all",
    control=False,
    success=0.8,
    interval=(0.75, 0.84),
    successes=240,
    episodes=300,
    by_verb={"pick": (240, 300)},
    against_dense=PAIRED,
    outcomes="",
    backends={"onnxruntime": TIMES},
    flops=4,
    flops_ratio=0.4,
    parameters=6_000_000,
    plan=Plan(),
)


def asked(name: str) -> Request:
    return request(BY_NAME[name], AMOUNTS, 10, 7)


def test_the_rows_are_those_of_the_paper_and_six_controls() -> None:
    assert asked(DENSE) == Request(seed=7)
    assert asked("layers + width + cache") == Request(
        layers=11, mlp_keep=0.75, cache_interval=5, seed=7
    )
    tokens = TokenPlan(keep=56, after=5, seed=7)
    assert asked("all") == Request(
        layers=11, mlp_keep=0.75, tokens=tokens, cache_interval=5, seed=7
    )
    assert [row.name for row in ROWS if row.control] == [
        "FastV tokens",
        "random tokens",
        "uniform grid",
        "random layers",
        "deepest layers",
        "fewer DDIM steps",
    ]


def test_controls_spend_what_the_method_spends() -> None:
    # as many as the cache runs in full
    assert asked("fewer DDIM steps") == Request(steps=2, seed=7)
    assert asked("random layers") == Request(layers=11, criterion="random", seed=7)
    early = asked("tokens at layer 2").tokens
    assert early is not None
    assert early.after == 2
    grid = asked("uniform grid").tokens
    assert grid is not None
    assert (grid.selector, grid.keep) == ("uniform", 56)


def test_milder_amounts_belong_to_the_milder_row_only() -> None:
    args = Args(milder_layers=14, milder_tokens=112)
    assert args.amounts(BY_NAME["all, milder"]) == Amounts(14, 0.75, 112, 5, 5)
    assert args.amounts(BY_NAME["all"]) == AMOUNTS


def test_names_of_files_differ() -> None:
    assert len({row.slug for row in ROWS}) == len(ROWS)
    assert BY_NAME["layers + width + cache"].slug == "layers-width-cache"


def test_a_row_reads_as_it_should() -> None:
    assert cells(LINE) == (
        "all",
        "80.0% (75.0% to 84.0%) of 300",
        "-1.0 (-4.0 to +2.0) *",
        "20.0 ms (2.00x)",
        "",
        "",
        "40.0%",
        "6.00 M",
    )


def test_the_table_takes_the_place_between_the_marks(repo_root: Path) -> None:
    table = as_markdown([LINE])
    begin = f"<!-- {NAME} -->"
    end = f"<!-- end of {NAME} -->"
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    assert insert(text, NAME, table) == f"before\n{begin}\n{table}\n{end}\nafter\n"
    assert insert(insert(text, NAME, table), NAME, table) == insert(text, NAME, table)
    assert begin in (repo_root / "docs" / "results" / "trimmed.md").read_text()
    with pytest.raises(ConfigError, match="expected the marks"):
        insert("no marks", NAME, table)


def test_played_seeds_are_read_back_but_not_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    assert read_rounds(path) == {}
    played = {DENSE: Outcome(1000, "pick", "pick up the cube", True, 9)}
    line = json.dumps({name: asdict(outcome) for name, outcome in played.items()})
    path.write_text(f"{line}\n{line[:-5]}")
    assert read_rounds(path) == {1000: played}


def test_some_rows_of_another_task() -> None:
    args = Args(
        env="simpler:widowx_stack_cube", rows=("uniform grid", "cache"), milder_cache_interval=2
    )
    assert [row.name for row in args.chosen] == [DENSE, "cache", "uniform grid"]
    assert args.suffix == "_widowx_stack_cube"
    assert not Args().suffix
    assert args.amounts(BY_NAME["all, milder"]).cache_interval == 2
    assert args.amounts(BY_NAME["all"]).cache_interval == 5
    with pytest.raises(ConfigError, match=r"expected --rows out of .*got \['cash'\]"):
        Args(rows=("cash",))


def test_bundles_are_made_of_the_rows_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        ablation_bundles,
        "spread",
        lambda some, rows, workers: [(row.name, tmp_path) for row in reversed(rows)],
    )
    args = Args(rows=("cache", "width"))
    made = make_bundles(args, cast("Any", None), Progress(disable=True))
    assert list(made) == [DENSE, "cache", "width"]


def test_official_episodes_come_first_and_a_seed_asks_for_others() -> None:
    assert choose_seeds(24, None, None, usual=300) == (True, range(24))
    assert choose_seeds(24, 8, None, usual=300) == (True, range(8))
    assert choose_seeds(24, None, 5000, usual=300) == (False, range(5000, 5300))
    assert choose_seeds(0, None, None, usual=300) == (False, range(1000, 1300))
    with pytest.raises(ConfigError, match="at most 24 official episodes, got --episodes 25"):
        choose_seeds(24, 25, None, usual=300)


def test_what_is_out_of_range_is_one_error() -> None:
    with pytest.raises(ConfigError, match="--episodes, --rounds"):
        Args(episodes=0, rounds=0)
