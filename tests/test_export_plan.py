"""Bundles of a policy under a plan: parity, the same bytes twice, smaller graphs, and the pair of
step graphs.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny_policy import TINY, export_cogact, random_policy
from tokenizers import Tokenizer, models

from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.reference.planned_stages import ExportedStages, TorchStages
from trimvla.export.verify import verify_bundle
from trimvla.launch import cli
from trimvla.policies.cogact.stages import KEPT, STAGES
from trimvla.policies.trimming.places import grid
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan
from trimvla.runtime.errors import BundleError, ConfigError
from trimvla.runtime.inference.policy import Policy

CFG = msgspec.structs.replace(
    TINY,
    language=msgspec.structs.replace(TINY.language, layers=5),
    diffusion=msgspec.structs.replace(TINY.diffusion, inference_steps=4),
)
KEEP = 6
PLAN = Plan(
    policy=CFG.fingerprint,
    layers=(0, 1, 2, 4),
    channels=(mask(range(36)),) * 4,
    tokens=TokenPlan(keep=KEEP, key=2),
    recompute=(0, 2),
)
STATISTICS = {
    "lab": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}}
}


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy():
    return random_policy(CFG)


@pytest.fixture(scope="module")
def bundle(policy, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    words = ("<pad>", "<s>", "</s>", "<empty>", "<unk>")
    Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")).save(
        str(root / "tokenizer.json")
    )
    options = {
        "statistics_key": "lab",
        "control_hz": 5.0,
        "created_utc": "2026-01-01T00:00:00+00:00",
    }
    export_cogact(policy, PLAN, STATISTICS, root / "tokenizer.json", root / "trimmed", **options)
    return root / "trimmed"


def test_a_trimmed_bundle_agrees_with_torch_under_its_plan(bundle, policy):
    report = verify_bundle(bundle, policy, samples=2)
    assert report.ok, report.failed
    assert report.groups["kept"].worst == 0.0
    assert bundles.load(bundle).plan == PLAN


def test_the_runtime_runs_a_trimmed_bundle(bundle):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    result = Policy.load(bundle).infer(image, "x", noise=np.zeros((16, 7), np.float32))
    assert np.isfinite(result.sample).all()


def test_graphs_are_smaller_and_static(bundle):
    graph = onnx.load(bundle / "language.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert {"TopK", "GatherElements"} <= set(operators)
    assert not {"If", "Loop", "Scan", "NonZero", "Compress"} & set(operators)
    shapes = [list(tensor.dims) for tensor in graph.initializer]
    assert [32, 36] in shapes or [36, 32] in shapes
    assert [32, 48] not in shapes
    assert [48, 32] not in shapes
    kept = next(value for value in graph.output if value.name == "kept")
    assert [d.dim_value for d in kept.type.tensor_type.shape.dim] == [1, KEEP]


@pytest.mark.slow
def test_two_exports_of_the_same_plan_give_the_same_bytes(bundle, policy, tmp_path):
    for stage in (KEPT, STAGES[2]):
        (path,) = export_stage(trim(policy, PLAN), stage, tmp_path / f"{stage.name}.onnx")
        assert path.read_bytes() == (bundle / path.name).read_bytes()


def test_a_plan_changed_in_the_manifest_is_noticed(bundle, policy, tmp_path):
    path = bundle / "manifest.json"
    before = path.read_text()
    data = json.loads(before)
    data["plan"]["recompute"] = [0, 3]
    try:
        path.write_text(json.dumps(data))
        assert not verify_bundle(bundle, policy, samples=1).ok
        data["plan"]["layers"] = [4, 0]
        path.write_text(json.dumps(data))
        with pytest.raises(BundleError, match="rising indices"):
            verify_bundle(bundle, policy)
    finally:
        path.write_text(before)


def test_a_plan_for_another_config_is_refused(policy, bundle, tmp_path):
    plan = msgspec.structs.replace(PLAN, policy="0" * 16)
    tokenizer = bundle / "tokenizer.json"
    with pytest.raises(ConfigError, match="expected a plan for policy 'tiny'"):
        export_cogact(
            policy,
            plan,
            STATISTICS,
            tokenizer,
            tmp_path / "out",
            statistics_key="lab",
            control_hz=5.0,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def exported(policy, tmp_path_factory):
    return ExportedStages(policy, tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("recompute", [(0,), (0, 2), (0, 1, 2, 3)], ids=str)
def test_the_pair_of_step_graphs_agrees_with_the_unrolled_sampler(policy, exported, recompute):
    """In NumPy, step by step, against torch, all at once; the two graphs serve every schedule."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 32, generator=generator)
    noise = torch.randn(1, 16, 7, generator=generator)
    plan = Plan(recompute=recompute)
    with torch.no_grad():
        expected = list(TorchStages(policy).trajectory(plan, z, noise))
        whole = TorchStages(policy).sample(plan, z, noise)
    got = list(exported.trajectory(plan, z, noise))
    assert len(got) == 4
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[-1], whole, atol=1e-5, rtol=1e-5)
    assert len(list(exported.directory.iterdir())) == 2


@pytest.mark.slow
def test_dropped_patches_reach_the_bundle_and_its_picture(
    policy, bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plan = Plan(vision=VisionPlan(patches=PatchPlan(keep=9, after=0)))
    options = {"statistics_key": "lab", "control_hz": 5.0, "created_utc": None}
    tokenizer = bundle.with_name("tokenizer.json")
    export_cogact(policy, plan, STATISTICS, tokenizer, tmp_path / "fewer", **options)
    report = verify_bundle(tmp_path / "fewer", policy, samples=1)
    assert report.ok, report.failed
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    words = f"{tmp_path}/fewer --image {tmp_path}/black.png --instruction x --json"
    out = str(tmp_path / "call.png")
    assert cli.main(["inspect", *words.split(), "--out", out]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tokens"] == {"kept": list(grid(16, 9)), "of": 16}
