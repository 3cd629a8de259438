"""Floors, memory and rooflines of a policy, whatever its family."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from trimvla.export.graphs.stages import prompt_lengths
from trimvla.launch.bench.floor import Machine, floors
from trimvla.launch.bench.subjects import BenchBundle, BenchInput, bundle_floors
from trimvla.launch.evaluation.policies import estimate
from trimvla.launch.verbs import build
from trimvla.policies.families import FAMILIES, all_presets, family_of, find_family, find_preset
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy

FLOW = "tabletop-flow"  # pi0's shape, shipped
SLOW = Machine(gflops=100.0, gbytes_per_s=10.0, threads=1)
ARGS = build.Args(bundle="", board="orin-nano")


@pytest.mark.parametrize("name", sorted(all_presets()))
def test_a_floor_for_every_stage_of_every_family(name: str) -> None:
    cfg = find_preset(name)
    cost = family_of(cfg).cost(cfg, Plan())
    lengths = prompt_lengths(cfg)
    found = floors(cfg, Plan(), lengths[0] if lengths else None, SLOW)
    assert list(found) == [*cost.stages, "total"]
    vision = cost.stages["vision"]
    assert found["vision"].ms == pytest.approx(vision.flops / 1e11 * 1e3)
    assert found["vision"].by == "operations"
    assert found["total"].ms == pytest.approx(
        sum(each.ms for stage, each in found.items() if stage != "total")
    )


def test_a_flow_bundle_has_a_floor() -> None:
    policy = Policy.load(FLOW, threads=1)
    entry = BenchBundle(FLOW, bundles.resolve(FLOW), policy, dense=True)
    image = np.zeros((24, 32, 3), np.uint8)
    found = bundle_floors(entry, BenchInput(image, "lift the red cube"), SLOW)
    assert set(found) == {*policy.manifest.modes[bundles.PLAIN], "total"}
    assert all(each.ms > 0 for each in found.values())
    policy.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_memory_holds_the_weights_that_cost_counts(name: str) -> None:
    family = find_family(name)
    assert family.memory is not None
    for cfg in family.presets.values():
        cost = family.cost(cfg, Plan())
        half = family.memory(cfg, Plan(), "float16")
        assert half.weights == {
            stage: each.weight_bytes // 2 for stage, each in cost.stages.items()
        }
        assert all(half.activations[stage] > 0 for stage in half.weights)


@pytest.mark.parametrize("name", ["pi0", "pi05", "dbcogact", "cogact-base"])
def test_build_refuses_what_a_board_has_no_memory_for(name: str) -> None:
    cfg = find_preset(name)
    shipped = bundles.load(bundles.resolve(FLOW))
    large = msgspec.structs.replace(shipped, policy=cfg.to_dict(), plan=Plan())
    with pytest.raises(ConfigError, match="Orin Nano 8 GB is too small"):
        build.check_memory(ARGS, large, build.find_device())
    if name.startswith("pi"):
        fits = build.check_memory(ARGS, shipped, build.find_device())
        assert fits is not None and 0 < fits.running < fits.building


def test_a_flow_bundle_stands_for_itself_on_a_device() -> None:
    own = estimate(FLOW, "orin")
    assert own.scale == bundles.load(bundles.resolve(FLOW)).policy["name"]
    assert own.ms == own.bundle_ms > 0
    assert estimate(FLOW, "orin", 0.5).ms == pytest.approx(2 * own.ms)
    model = estimate("tabletop", "orin")
    assert model.scale == "cogact-base" and model.ms > 20 * model.bundle_ms
