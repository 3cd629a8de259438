"""pi0 and pi0.5 against what the public code computed, in torch and through exported graphs; the
action stage's pieces against the plain sampler, and plans that do not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from trimvla.export.compare import Comparison
from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.reference.checks import compare_group
from trimvla.export.reference.groups import Group
from trimvla.export.reference.pi0.directory import Pi0Reference, exported, open_reference
from trimvla.export.reference.pi0.groups import GROUPS
from trimvla.export.reference.staged import TorchRuns
from trimvla.policies.nn.flow import KnownRows
from trimvla.policies.pi0.model import Pi0
from trimvla.policies.stage import Stage
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import ConfigError

FIXTURES = ("pi0_tiny_a", "pi05_tiny_a")
GIVEN = {"time/t", "in/noise"}  # inputs, beside images and state
NARROW = (mask(range(0, 90, 2)), mask(range(64)), mask(range(128)))
HALF = mask(range(50))
UNIFORM = TokenPlan(keep=8, selector="uniform", after=2)
PLANS = {
    "dense": Plan(),
    "pairs": Plan(layers=(0, 2, 3)),
    "expert": Plan(expert_layers=(0, 2)),
    "expert of pairs": Plan(layers=(0, 1, 3), expert_layers=(0, 3), expert_channels=(HALF,) * 2),
    "width": Plan(layers=(0, 1, 3), channels=NARROW),
    "reuse": Plan(recompute=(0, 3, 7)),
    "steps": Plan(steps=4),
    "tokens": Plan(tokens=TokenPlan(keep=8, selector="relevance", after=2)),
    "late tokens": Plan(tokens=UNIFORM, expert_layers=(2, 3)),
    "quotas": Plan(tokens=TokenPlan(keep=8, selector="efficientvla", after=1, quotas=(6, 2))),
    "next": Plan(tokens=TokenPlan(keep=8, selector="fastv", after=1, source="next")),
    "vision": Plan(vision=VisionPlan(blocks=((0, 2),), patches=PatchPlan(keep=9, after=1))),
}  # fmt: skip


@lru_cache(maxsize=4)
def opened(directory: Path) -> Pi0Reference:
    return open_reference(directory)


@pytest.fixture(params=FIXTURES)
def reference(request: pytest.FixtureRequest, shared_dir: Path) -> Pi0Reference:
    return opened(shared_dir / "fixtures" / request.param)


def failures(comparison: Comparison) -> list[str]:
    return [f"{failure.key}: {failure.reason}" for failure in comparison.failed]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_stored_array_is_what_we_compute(reference: Pi0Reference, group: Group) -> None:
    comparison = compare_group(group, reference)
    assert not failures(comparison)
    assert comparison.compared


def test_every_stored_array_is_compared(reference: Pi0Reference) -> None:
    inputs = GIVEN | {"in/observation.state", *(f"in/{name}" for name in reference.features)}
    left = [key for key in reference.keys if not any(group.covers(key) for group in GROUPS)]
    assert set(left) == inputs


def test_a_weight_that_is_wrong_is_noticed(reference: Pi0Reference) -> None:
    policy = family_built(reference)
    with torch.no_grad():
        policy.expert.action_out_proj.bias.add_(0.01)
    wrong = replace(reference, policy=policy, stages=TorchRuns(policy))
    trajectory = next(group for group in GROUPS if group.name == "trajectory")
    assert failures(compare_group(trajectory, wrong))


def family_built(reference: Pi0Reference) -> Pi0:
    return reference.family.build(
        reference.policy.cfg,
        {name: tensor.clone() for name, tensor in reference.policy.state_dict().items()},
    )  # pyright: ignore[reportReturnType]


@pytest.fixture(params=list(PLANS))
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]


def chain(
    policy: Pi0, stages: tuple[Stage, ...], tensors: dict[str, torch.Tensor]
) -> Iterator[tuple[Stage, dict[str, torch.Tensor]]]:
    for stage in stages:
        with torch.no_grad():
            result = stage.module(policy)(*(tensors[name] for name in stage.inputs))
        outputs = result if isinstance(result, tuple) else (result,)
        given = dict(zip(stage.outputs, outputs, strict=True))
        tensors.update(given)
        yield stage, given


def test_stages_are_the_policy_under_every_plan(reference: Pi0Reference, plan: Plan) -> None:
    family = reference.family
    policy = family.trim(reference.policy, plan)
    cfg = policy.cfg
    specs = family.tensor_specs(cfg, plan)
    for bucket in cfg.prompt.buckets[::2]:
        tensors = family.example_inputs(cfg, plan, bucket, torch.Generator().manual_seed(bucket))
        rows = torch.Generator().manual_seed(0)
        tensors["known"] = torch.randn(tensors["noise"].shape, generator=rows)
        tensors["weight"] = torch.rand(1, cfg.horizon, 1, generator=rows)
        for stage, given in chain(policy, family.stages(cfg, plan, True), tensors):
            for name, tensor in given.items():
                assert tensor.shape == tuple(specs[name].shape), (stage.name, name)
        known = KnownRows(tensors["known"], tensors["weight"])
        with torch.no_grad():
            visual = policy.vision(tensors["images"]).flatten(0, 1)[None]
            memory = policy.language(visual, tensors["input_ids"], tensors["last"] + 1)
            plain = policy.act(memory, tensors["noise"], tensors.get("state"))
            guided = policy.act(memory, tensors["noise"], tensors.get("state"), known)
        assert (plain - tensors["actions"]).abs().max() < 1e-5
        assert (guided - tensors["guided_actions"]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(layers=(0, 9)), "'layers' below"),
        (Plan(layers=(0, 1), channels=(mask([0]),)), "'channels' for 2 kept layers, got 1"),
        (Plan(expert_channels=(mask([500]),) * 9), "'expert_channels' for"),
        (Plan(guidance=1.5), r"nothing to trim by \['guidance'\]"),
        (Plan(vision=VisionPlan(image_size=28)), "vision.image_size"),
        (Plan(vision=VisionPlan(blocks=((0, 7),))), "'vision.blocks' below 3"),
        (Plan(tokens=TokenPlan(keep=33, selector="uniform")), "at most 32 visual tokens"),
        (
            Plan(tokens=TokenPlan(keep=8, selector="relevance", after=9)),
            "fewer layers before tokens",
        ),
        (Plan(tokens=TokenPlan(keep=8, rows="state")), "the decoder sees no state"),
        (Plan(tokens=TokenPlan(keep=8, source="expert")), "'previous' or 'next' for 'source'"),
        (Plan(layers=(0, 1), tokens=TokenPlan(keep=8, after=1, source="next")), "deepest"),
        (Plan(tokens=TokenPlan(keep=8, quotas=(4, 2, 2))), "for 2 cameras, got 3"),
        (Plan(steps=4, recompute=(0, 5)), "'recompute' below 4"),
        (Plan(policy="0" * 16), "expected a plan for policy"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    reference: Pi0Reference, plan: Plan, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        reference.family.trim(reference.policy, plan)


@pytest.mark.slow
def test_exported_graphs_give_the_stored_arrays(shared_dir: Path, tmp_path: Path) -> None:
    """One family, the groups that need no more graphs than a dense policy and one trimmed one
    have.
    """
    reference = opened(shared_dir / "fixtures" / "pi05_tiny_a")
    through = exported(reference, tmp_path, False)
    wanted = {"keys", "trajectory", "end_to_end", "current_keys", "kept_tokens", "tokens"}
    for group in GROUPS:
        if group.name in wanted:
            assert group.staged
            comparison = compare_group(group, through)
            assert not failures(comparison)
            assert comparison.compared


def test_the_action_graph_holds_each_weight_once_and_no_modulation(
    shared_dir: Path, tmp_path: Path
) -> None:
    reference = opened(shared_dir / "fixtures" / "pi05_tiny_a")
    policy = reference.policy
    stage = reference.family.stages(policy.cfg, Plan(), False)[-1]
    export_stage(policy, stage, tmp_path / "action.onnx")
    graph = onnx.load(tmp_path / "action.onnx").graph
    stored = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    counted = reference.family.cost(policy.cfg, Plan()).stages["action"].parameters
    assert stored == pytest.approx(counted, rel=0.01)
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"ScatterND", "CumSum", "ReduceMin", "Sin64", "If", "Loop"}
    doubles = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.DOUBLE]
    assert not doubles
