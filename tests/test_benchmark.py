"""The parts of a benchmark: turns, ratios worked out by hand, floors, and torch behind a runner's
contract.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from runner_contract import check_runner
from tiny_policy import inputs, random_policy

from trimvla.export.graphs.stages import stage_spec
from trimvla.launch.bench.floor import (
    MATRIX_PRODUCT,
    Floor,
    Machine,
    better,
    floor,
    floors,
    measure_machine,
)
from trimvla.launch.bench.report import doubts, write_samples
from trimvla.launch.bench.torch_twin import TorchRunner
from trimvla.launch.bench.turns import COMPILED, EAGER, Subject, measure, median_interval, rows
from trimvla.policies.cogact.stages import stages
from trimvla.policies.sizes.config import PRESETS
from trimvla.policies.sizes.cost import Cost
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan, TokenPlan

PLAN = Plan(layers=(0, 2), tokens=TokenPlan(keep=6, after=1), recompute=(0,))
TOTALS = [("L0", "total"), ("L2", "total")]


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


def subject(name: str, calls=(), *, backend: str = "onnxruntime", dense: bool = False) -> Subject:
    return Subject(name, name, backend, dense, tuple(calls))


def test_all_take_turns_and_every_second_turn_goes_backwards() -> None:
    heard: list[tuple[int, str, str]] = []

    def call(name: str, layer: str):
        def made(turn: int) -> dict[tuple[str, str], float]:
            heard.append((turn, name, layer))
            return {(layer, "total"): float(turn)}

        return made

    names = ("dense", "trimmed")
    subjects = [subject(name, [call(name, layer) for layer in ("L0", "L2")]) for name in names]
    watched: list[int] = []
    samples = measure(subjects, rounds=2, warmup=1, watch=watched.append)
    forth = [("dense", "L0"), ("trimmed", "L0"), ("dense", "L2"), ("trimmed", "L2")]
    back = [("trimmed", "L0"), ("dense", "L0"), ("trimmed", "L2"), ("dense", "L2")]
    assert [(name, layer) for _, name, layer in heard] == [*forth, *back, *forth]
    assert samples == {
        name: {("L0", "total"): [1.0, 2.0], ("L2", "total"): [1.0, 2.0]} for name in names
    }
    assert watched == [1, 2, 3]


def test_ratios_are_of_the_same_turn() -> None:
    """Turns of 10, 20 and 30 ms: the trimmed one takes a half, a quarter and a fifth of the dense
    one's time.
    """
    samples = {
        "dense": {TOTALS[0]: [10.0, 20.0, 30.0], TOTALS[1]: [12.0, 22.0, 32.0]},
        "trimmed": {TOTALS[0]: [5.0, 5.0, 6.0], TOTALS[1]: [8.0, 6.0, 8.0]},
        "dense@torch-eager": {TOTALS[0]: [50.0, 50.0, 60.0]},
    }
    subjects = [
        subject("dense", dense=True),
        subject("trimmed"),
        subject("dense@torch-eager", backend=EAGER, dense=True),
    ]
    found = {
        (row.name, row.layer): row
        for row in rows(subjects, samples, {"trimmed": {"total": Floor(1.5, "bytes")}})
    }
    row = found["trimmed", "L0"]
    assert (row.ratio_low, row.ratio_to_dense, row.ratio_high) == (3.0, 4.0, 4.5)
    assert (row.p50_ms, row.p99_ms, row.ratio_to_eager_dense) == (5.0, 5.98, 10.0)
    assert (row.floor_ms, row.floor_by) == (1.5, "bytes")
    assert found["trimmed", "L2"].over_l0_ms == 2.0  # of 3, 1 and 2
    assert found["trimmed", "L2"].floor_ms is None
    assert found["trimmed", "L2"].ratio_to_eager_dense is None
    assert found["dense", "L0"].ratio_to_dense == 1.0
    assert found["dense@torch-eager", "L0"].ratio_to_dense == 1.0


def test_a_median_comes_with_its_interval() -> None:
    """Of 100 values the 40th and the 61st, as in the tables of order statistics; few values say
    little.
    """
    assert median_interval([float(value) for value in reversed(range(100))]) == (39.0, 60.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_a_disturbed_measurement_is_doubted() -> None:
    (row,) = rows([subject("trimmed")], {"trimmed": {TOTALS[0]: [5.0]}}, {})
    measured = [
        msgspec.structs.replace(row, name="a", floor_ms=2.0, p50_ms=1.9),
        msgspec.structs.replace(row, name="b", floor_ms=2.0, p50_ms=2.1),
        msgspec.structs.replace(row, name="c", floor_ms=None, p50_ms=2.1),
    ]
    below, again = doubts(measured, resent=3)
    assert below.endswith(" a.")
    assert "3 frames" in again
    assert list(doubts(measured[1:], resent=0)) == []


def test_samples_are_kept_as_arrays_or_lists(tmp_path: Path) -> None:
    samples = {"dense": {TOTALS[0]: [1.0, 2.0]}, "trimmed": {TOTALS[1]: [0.5, 0.25]}}
    for name in ("new/samples.npz", "samples.json"):
        write_samples(samples, tmp_path / name)
    assert json.loads((tmp_path / "samples.json").read_text()) == {
        "dense L0 total": [1.0, 2.0],
        "trimmed L2 total": [0.5, 0.25],
    }
    with np.load(tmp_path / "new" / "samples.npz") as arrays:
        assert sorted(arrays) == ["dense L0 total", "trimmed L2 total"]
        np.testing.assert_array_equal(arrays["trimmed L2 total"], [0.5, 0.25])


def test_no_ratio_without_a_dense_policy() -> None:
    (row,) = rows([subject("trimmed")], {"trimmed": {TOTALS[0]: [5.0]}}, {})
    assert row.ratio_to_dense is None
    assert row.p50_ms == 5.0


def test_the_floor_is_the_larger_of_two() -> None:
    machine = Machine(gflops=100.0, gbytes_per_s=10.0, threads=1)
    assert floor(Cost(parameters=1_000_000, flops=1_000_000_000), machine) == Floor(
        10.0, "operations"
    )
    assert floor(Cost(parameters=50_000_000, flops=1_000_000_000), machine) == Floor(20.0, "bytes")
    assert better(machine, Machine(80.0, 12.0, 1)) == Machine(100.0, 12.0, 1)


def test_a_plan_lowers_the_floor() -> None:
    """No plan touches vision; fewer layers and full steps cost less of all else."""
    machine = Machine(100.0, 10.0, 1)
    cfg = PRESETS["tabletop"]
    dense, trimmed = (
        floors(cfg, plan, 24, machine)
        for plan in (Plan(), Plan(layers=(0, 1, 15), recompute=(0, 5)))
    )
    assert trimmed["vision"] == dense["vision"]
    assert trimmed["language"].ms < dense["language"].ms
    assert trimmed["action"].ms < dense["action"].ms
    assert dense["total"].ms == pytest.approx(
        sum(dense[stage].ms for stage in ("vision", "language", "action"))
    )


def test_the_machine_is_measured() -> None:
    """Any computer that runs this does more than 0.05 GFLOP/s and reads more than 0.05 GB/s, and
    less than 1e5.
    """
    machine = measure_machine(1, trial_s=0.0)
    assert 0.05 < machine.gflops < 1e5
    assert 0.05 < machine.gbytes_per_s < 1e5
    model = onnx.load_from_string(MATRIX_PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


def stage_inputs(plan: Plan) -> dict[str, np.ndarray]:
    policy = random_policy()
    generator = np.random.default_rng(0)
    image, ids, last, noise = (tensor.numpy() for tensor in inputs())
    cfg = policy.cfg
    visual = generator.standard_normal((1, cfg.patches, cfg.language.width), dtype=np.float32)
    cognition = generator.standard_normal((1, cfg.language.width), dtype=np.float32)
    ids.setflags(write=False)  # as the prompter gives them
    names = ("image", "input_ids", "last", "noise", "visual", "cognition")
    return dict(zip(names, (image, ids, last, noise, visual, cognition), strict=True))


def check_stages(plan: Plan, backend: str) -> None:
    policy = trim(random_policy(), plan)
    given = stage_inputs(plan)
    for stage in stages(policy.cfg, plan):
        spec = stage_spec(policy.cfg, stage, f"{stage.name}.onnx", plan)
        runner = TorchRunner(stage.module(policy), spec, backend)
        arrays = {name: given[name] for name in stage.inputs}
        check_runner(runner, arrays)
        oracle = TorchRunner(stage.module(policy), spec, EAGER).run(arrays)
        for name, value in runner.run(arrays).items():
            np.testing.assert_allclose(value, oracle[name], atol=1e-4)


@pytest.mark.parametrize("plan", [Plan(), PLAN], ids=["dense", "trimmed"])
def test_torch_keeps_the_runners_contract(plan: Plan) -> None:
    check_stages(plan, EAGER)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [Plan(), PLAN], ids=["dense", "trimmed"])
def test_compiled_torch_keeps_the_runners_contract(plan: Plan) -> None:
    check_stages(plan, COMPILED)
