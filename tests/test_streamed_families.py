"""Policies of other families than CogACT, exported without being held: pi0 and pi0.5."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from test_flow_training import TINY as PI0_TINY
from torch import Tensor

from trimvla.export.streaming.weightless import blank_policy, blank_skeleton
from trimvla.export.tensorrt.operators import check_operators
from trimvla.launch import cli
from trimvla.policies.cogact.weights import RandomWeights
from trimvla.policies.families import family_of
from trimvla.policies.pi0.config import PRESETS, TEMPLATES, Pi0Config
from trimvla.policies.pi0.layout import build_meta
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, TokenPlan, save_plan
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

PI05_TINY = msgspec.structs.replace(
    PI0_TINY,
    family="pi05",
    name="tiny05",
    prompt=msgspec.structs.replace(PI0_TINY.prompt, template=TEMPLATES["pi05"], buckets=(48, 64)),
)


@pytest.fixture(autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)


class Watched(RandomWeights):
    """Notes how many bytes are lent at once."""

    held = most = 0

    @contextmanager
    def lend(self, name: str) -> Iterator[Tensor]:
        with super().lend(name) as weight:
            Watched.held += weight.nbytes
            Watched.most = max(Watched.most, Watched.held)
            yield weight
            Watched.held -= weight.nbytes


def in_torch(cfg: Pi0Config, plan: Plan) -> torch.nn.Module:
    """The policy with the weights of seed 0, held."""
    dense = build_meta(cfg)
    weights = RandomWeights(cfg, 0, dense)  # pyright: ignore[reportArgumentType] - `dense` is meant
    values: dict[str, Tensor] = {}
    for name in dense.state_dict():
        with weights.lend(name) as lent:
            values[name] = lent.clone()
    dense.load_state_dict(values, assign=True)
    return family_of(cfg).trim(dense.eval(), plan)


@pytest.mark.slow
def test_random_weights_are_streamed_in_half(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through a plan with scattered pairs and fewer tokens: what torch computes, by the same
    numbers. pi0.5's, whose norms take constants from many weights.
    """
    cfg = PI05_TINY
    monkeypatch.setitem(PRESETS["pi05"], "tiny", cfg)
    monkeypatch.setattr("trimvla.launch.exporting.stream.RandomWeights", Watched)
    last = cfg.language.layers - 1
    plan = Plan(layers=(0, last - 1, last), tokens=TokenPlan(selector="uniform", keep=6, after=1))
    save_plan(plan, tmp_path / "plan.json")
    out = tmp_path / "bundle"
    words = [
        "export",
        "--random-weights",
        "--preset",
        "tiny",
        "--plan",
        str(tmp_path / "plan.json"),
    ]
    assert not cli.main([*words, "--dtype", "fp16", "--out", str(out), "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"] and result["dtype"] == "float16"
    largest = max(weight.numel() * 4 for weight in build_meta(cfg).state_dict().values())
    assert 0 < Watched.most <= largest, "one weight at a time"
    manifest = bundles.load(out)
    assert manifest.plan == plan and manifest.flow is not None
    check_same_actions(cfg, plan, out)
    for stage in manifest.stages.values():
        check_operators(out / stage.file)
    graph = onnx.load(str(out / "language.onnx"), load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    table = [name for name in kinds if "embed_tokens" in name]
    assert [kinds[name] for name in table] == [onnx.TensorProto.FLOAT16]


def check_same_actions(cfg: Pi0Config, plan: Plan, bundle: Path) -> None:
    """Stage by stage, as half precision allows."""
    policy = in_torch(cfg, plan)
    generator = torch.Generator().manual_seed(1)
    family = family_of(cfg)
    given = family.example_inputs(cfg, plan, cfg.prompt.buckets[0], generator)
    loaded = Policy.load(bundle, threads=1)
    rng = np.random.default_rng(0)
    side = cfg.vision.image_size
    images = {name: rng.integers(0, 256, (side, side, 3), np.uint8) for name in cfg.cameras}
    seen = Observation(images, "lift", rng.normal(size=cfg.state_dim))
    result = loaded.infer(seen, noise=given["noise"].numpy()[0])
    assert np.isfinite(result.actions).all()
    with torch.no_grad():
        for stage in family.stages(cfg, plan, False):
            made = stage.module(policy)(*(given[name] for name in stage.inputs))
            outputs = made if isinstance(made, tuple) else (made,)
            arrays = {name: given[name].numpy() for name in stage.inputs}
            got = loaded.runners[stage.name].run(arrays)
            for name, value in zip(stage.outputs, outputs, strict=True):
                given[name] = value
                if not value.is_floating_point():
                    assert np.array_equal(got[name], value.numpy())
                    continue
                distance = np.linalg.norm(got[name] - value.numpy()) / value.norm()
                assert distance < 0.02, (stage.name, name)
    loaded.close()


@pytest.mark.slow
def test_stages_weigh_what_cost_says() -> None:
    """At pi0's true widths, with three layers and no values."""
    whole = PRESETS["pi0"]["pi0"]
    cfg = msgspec.structs.replace(
        whole,
        vision=msgspec.structs.replace(whole.vision, depth=2, feature_block=1),
        language=msgspec.structs.replace(whole.language, layers=3),
    )
    family = family_of(cfg)
    plan = Plan(steps=2)
    blank = blank_policy(cfg, plan, RandomWeights(cfg, 0, build_meta(cfg)))  # pyright: ignore[reportArgumentType]
    assert family.memory is not None
    expected = family.memory(cfg, plan, "float16").weights
    for stage in family.stages(cfg, plan, False):
        bones = blank_skeleton(blank, stage, "weights", "float16")
        assert bones.bytes == pytest.approx(expected[stage.name], rel=0.01), stage.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mlp-keep 0.5", "expected a plan that keeps matrices whole, for a streamed 'pi0'"),
        ("--dtype int8", "expected --dtype as one of ['float32', 'float16', 'bfloat16']"),
        ("--layers 99", "expected from 1 to 4 language layers to keep, got 99"),
    ],
)
def test_what_cannot_be_streamed_is_named(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(PRESETS["pi0"], "tiny", PI0_TINY)
    out = str(tmp_path / "bundle")
    command = ["export", "--random-weights", "--preset", "tiny", "--out", out, *words.split()]
    assert cli.main(command)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
