"""A flow policy in 8-bit integers: which products, from which frames, and how close to torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from smolvla_policy import TINY
from test_paired_plan import pi0_folder, smolvla_folder

from trimvla.export.graphs.graph_edit import unfold_weights
from trimvla.launch import cli
from trimvla.launch.exporting.policy_source import open_source
from trimvla.launch.exporting.stage_frames import stage_frames
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, save_plan
from trimvla.runtime.bundle.vision_plan import VisionPlan
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

FAMILIES = {"smolvla": smolvla_folder, "pi0": pi0_folder}


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def products(path: Path) -> tuple[set[str], set[str]]:
    """Names of the weights whose products compute in float32, and in int8."""
    model = ir.load(path)
    unfold_weights(model)
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1] is not None:
            before = node.inputs[1].producer()
            quantised = before is not None and before.op_type == "DequantizeLinear"
            value = before.inputs[0] if quantised and before is not None else node.inputs[1]
            if value is not None and value.is_initializer():
                found[quantised].add(str(value.name))
    return found[False], found[True]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_int8_of_a_flow_policy(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    FAMILIES[name](folder)
    save_plan(Plan(layers=(0, 1), steps=2), tmp_path / "plan.json")  # less to trace
    words = ("--plan", str(tmp_path / "plan.json"), "--dtype", "int8", "--frames", "2", "--json")
    status = cli.main(["export", str(folder), *words, "--out", str(tmp_path / "bundle")])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    result = json.loads(printed.out.splitlines()[-1])
    assert 0 < result["parity"]["groups"]["visual"]["worst"] < 0.06
    manifest = bundles.load(tmp_path / "bundle")
    assert manifest.precision == "int8"
    whole, small = products(tmp_path / "bundle" / "action.onnx")
    assert small and all(".mlp." in weight for weight in small)
    assert not any(".mlp." in weight for weight in whole)
    assert products(tmp_path / "bundle" / "vision.onnx")[1]
    policy = Policy.load(tmp_path / "bundle")
    images = {camera: np.zeros((20, 30, 3), np.uint8) for camera in manifest.images.names}
    assert manifest.state is not None
    seen = Observation(images, "lift", np.zeros(manifest.state.dim))
    assert np.isfinite(policy.infer(seen).actions).all()
    policy.close()


def test_frames_are_what_the_stages_take(tmp_path: Path) -> None:
    smolvla_folder(tmp_path)
    opened = open_source(tmp_path)
    shards = sorted((tmp_path / "demos").glob("*.npz"))
    plan = Plan(vision=VisionPlan(image_size=16))
    made = stage_frames(opened, plan, shards, 3, seed=0)
    assert len(made) == 3
    for frame in made:
        assert frame["images"].shape == (2, 16, 16, 3)
        assert frame["input_ids"].shape[1] in opened.cfg.prompt.buckets
        assert frame["state"].shape == (1, TINY.padded_state_dim)
        assert 0 <= frame["last"][0] < frame["input_ids"].shape[1]
    assert np.abs(made[0]["noise"] - made[1]["noise"]).max() > 0
    again = stage_frames(opened, plan, shards, 3, seed=0)
    for one, other in zip(made, again, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_int8_needs_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smolvla_folder(tmp_path)
    (tmp_path / "demos" / "shard-0000.npz").unlink()
    out = tmp_path / "bundle"
    assert cli.main(["export", str(tmp_path), "--dtype", "int8", "--out", str(out)]) == 1
    assert "expected shards of demonstrations (--calibration" in capsys.readouterr().err
    assert not out.exists()
