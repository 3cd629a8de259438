"""The memory planner: against the cost model, against hand-made numbers, and the table of
boards.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from trimvla.launch import cli
from trimvla.policies.sizes import memory
from trimvla.policies.sizes.config import PRESETS
from trimvla.policies.sizes.cost import report, shape_by_counts, stage_costs
from trimvla.policies.sizes.memory import BOARDS, GIB, plan_memory, require_memory, usable_on
from trimvla.runtime.bundle.plan import TokenPlan
from trimvla.runtime.errors import ConfigError

BASE = PRESETS["cogact-base"]
DENSE = shape_by_counts(BASE)
TRIMMED = shape_by_counts(
    BASE, layers=22, mlp_keep=0.75, tokens=TokenPlan(keep=56), cache_interval=5
)


@pytest.mark.parametrize("name", PRESETS)
def test_weights_are_those_of_the_cost_model(name: str) -> None:
    cfg = PRESETS[name]
    shape = shape_by_counts(cfg)
    weights = report(cfg, shape).weight_bytes
    assert sum(plan_memory(cfg, shape, "float32").weights.values()) == weights
    assert sum(plan_memory(cfg, shape, "float16").weights.values()) == weights // 2


def test_the_embedding_and_the_other_stages_stay_in_16_bits() -> None:
    whole = plan_memory(BASE, DENSE, "int8")
    half = plan_memory(BASE, DENSE, "float16")
    assert whole.weights["vision"] == half.weights["vision"]
    table = BASE.language.vocab * BASE.language.width
    language = stage_costs(BASE, DENSE, 64)["language"].parameters
    assert whole.weights["language"] == language - table + 2 * table


def test_sums_by_hand() -> None:
    plan = memory.MemoryPlan(
        "float16", {"a": 100, "b": 200}, {"a": 7, "b": 5}, builder_base=1000, workspace=50
    )
    assert plan.running == 300 + 7 + memory.CONTEXT_BYTES
    assert plan.building == 3 * 200 + 5 + 1000 + 50
    assert plan.verdict(plan.running - 1) == "no"
    assert plan.verdict(max(plan.running, plan.building)) == "yes"
    larger = memory.MemoryPlan("float16", {"a": 1 << 30}, {"a": 0}, builder_base=0, workspace=0)
    assert larger.verdict(larger.running) == "runs"


def test_activations_by_hand() -> None:
    assert memory.block_elements(tokens=10, width=4, hidden=8, heads=2) == 10 * (5 * 4 + 2 * 10)
    assert memory.block_elements(tokens=10, width=4, hidden=100, heads=2) == 10 * (4 + 200)


def test_less_of_a_policy_needs_less() -> None:
    for precision in memory.PRECISIONS:
        dense, trimmed = (plan_memory(BASE, shape, precision) for shape in (DENSE, TRIMMED))
        assert trimmed.running < dense.running
        assert trimmed.building < dense.building


def test_lower_precisions_need_less() -> None:
    needs = [
        plan_memory(BASE, DENSE, name).running for name in ("float32", "float16", "int8", "int4")
    ]
    assert needs == sorted(needs, reverse=True)
    assert (
        plan_memory(BASE, DENSE, "float16").running == plan_memory(BASE, DENSE, "bfloat16").running
    )


def test_usable_memory_leaves_the_system_its_share() -> None:
    usable = [usable_on(name) for name in BOARDS]
    assert usable == sorted(usable)
    for name, bytes_left in zip(BOARDS, usable, strict=True):
        assert 0.7 < bytes_left / (BOARDS[name].memory_gib * GIB) < 0.9


def test_a_board_that_is_too_small_is_refused_with_the_numbers() -> None:
    plan = plan_memory(BASE, DENSE, "float16")
    with pytest.raises(
        ConfigError,
        match=r"Orin NX 16 GB is too small: .* 14\.4 GiB to run in float16 .*'language'",
    ):
        require_memory(plan, usable_on("orin-nx"), BOARDS["orin-nx"].title)
    require_memory(plan, usable_on("orin"), BOARDS["orin"].title)


def test_a_machine_that_only_builds_need_not_run() -> None:
    plan = memory.MemoryPlan(
        "float16", {"a": 1, "b": 1}, {"a": 0, "b": 0}, builder_base=0, workspace=0
    )
    require_memory(plan, 10, "here", run_here=False)
    with pytest.raises(ConfigError, match="here is too small"):
        require_memory(plan, 10, "here")


@pytest.mark.parametrize(
    ("options", "field"), [({"precision": "int2"}, "precision"), ({"backend": "cpu"}, "backend")]
)
def test_unknown_words_are_refused(options: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=f"for '{field}'"):
        plan_memory(BASE, DENSE, **{"precision": "float16", **options})


def test_the_verb_prints_a_row_for_every_plan_and_precision(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["cost", "--preset", "cogact-base", "--boards", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["boards"]
    assert len(rows) == 5 * len(memory.PRECISIONS)
    found = {(row["plan"], row["precision"]): row["boards"] for row in rows}
    assert all(set(boards) == set(BOARDS) for boards in found.values())
    assert found["dense", "float16"]["orin-nano"] == "no"
    assert found["dense", "float16"]["thor"] == "yes"
    assert found["L22 T56", "float16"] == plan_verdicts(plan_memory(BASE, TRIMMED, "float16"))


def plan_verdicts(plan: memory.MemoryPlan) -> dict[str, str]:
    return {name: plan.verdict(board.usable_bytes) for name, board in BOARDS.items()}


def test_an_asked_plan_is_the_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            ["cost", "--layers", "22", "--mlp-keep", "0.75", "--tokens", "56", "--boards", "--json"]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["boards"]
    assert {row["plan"] for row in rows} == {"as asked"}


def test_a_robot_without_torch_can_plan_and_build() -> None:
    code = (
        "import sys; import trimvla.launch.verbs.build, trimvla.launch.verbs.cost;"
        " print({'torch', 'onnx'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"
