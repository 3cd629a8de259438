"""Rooflines of devices: against numbers worked out by hand, and what a plan becomes at another
scale.
"""

from __future__ import annotations

import pytest

from trimvla.policies.sizes.config import find_preset
from trimvla.policies.sizes.cost import Cost, shape_by_counts
from trimvla.policies.sizes.roofline import (
    DEVICES,
    Device,
    estimate_ms,
    find_device,
    same_plan,
    stage_ms,
)
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.errors import ConfigError

BASE = find_preset("cogact-base")
SMALL = find_preset("tabletop")


def test_a_stage_is_as_slow_as_the_slower_of_operations_and_bytes() -> None:
    device = Device("a device", tflops=10, gbytes_per_s=100, source="")
    # 2 GB at 100 GB/s
    assert stage_ms(Cost(parameters=10**9, flops=10**9), 10**9, device) == pytest.approx(20)
    assert stage_ms(Cost(parameters=10, flops=10**12), 10, device) == pytest.approx(100)


def test_peaks_are_dense_and_of_16_bits() -> None:
    assert DEVICES["orin"].tflops == pytest.approx(42.5)
    assert DEVICES["thor"].tflops == pytest.approx(258.75)


def test_what_is_attained_divides_and_a_plan_saves() -> None:
    orin = find_device("orin")
    dense = shape_by_counts(BASE)
    whole = estimate_ms(BASE, dense, orin)
    assert whole["total"] == pytest.approx(
        sum(whole[stage] for stage in ("vision", "language", "action"))
    )
    assert estimate_ms(BASE, dense, orin, 0.5)["total"] == pytest.approx(2 * whole["total"])
    assert whole["language"] == pytest.approx(3_675e9 / 42.5e9, rel=0.05), (
        "EfficientVLA counts 3,727 GFLOP at 285 tokens"
    )
    assert estimate_ms(BASE, dense, find_device("thor"))["total"] < whole["total"]
    with pytest.raises(ConfigError, match=r"'attained', got 1\.5"):
        estimate_ms(BASE, dense, orin, 1.5)
    with pytest.raises(ConfigError, match="expected one of"):
        find_device("nano")


def test_a_plan_keeps_the_same_shares_at_another_scale() -> None:
    three_quarters = mask(range(384))
    plan = Plan(
        layers=tuple(range(14)),
        channels=(three_quarters,) * 14,
        tokens=TokenPlan(keep=56, after=5),
        recompute=(0, 5),
    )
    shape = same_plan(SMALL, plan, BASE)
    assert len(shape.mlp) == 28
    assert set(shape.mlp) == {round(0.75 * 11008)}
    assert shape.tokens is not None
    assert (shape.tokens.keep, shape.tokens.after) == (56, 10)
    assert (shape.full_steps, shape.steps) == (2, 10)
    assert same_plan(SMALL, Plan(), BASE) == shape_by_counts(BASE)
    assert same_plan(BASE, Plan(), BASE) == shape_by_counts(BASE)
