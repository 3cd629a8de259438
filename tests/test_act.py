"""ACT, as LeRobot has it: what its own class computed, its folder's way into a bundle, its plans,
and what is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tests.act_policy import (
    CASES,
    NORMALIZER,
    TINY,
    inputs,
    random_policy,
    write_checkpoint,
    write_reference,
)
from trimvla.export.reference.checks import verify_reference
from trimvla.export.tensorrt.operators import check_operators, describe
from trimvla.launch import cli
from trimvla.launch.exporting.paired_plan import frames_of
from trimvla.policies.act.checkpoint import build, dead_names, layout
from trimvla.policies.act.config import IMAGENET_MEAN, PRESETS, ActConfig
from trimvla.policies.act.cost import cost
from trimvla.policies.act.kept import check
from trimvla.policies.act.layers import EncoderLayer
from trimvla.policies.act.model import Act
from trimvla.policies.act.source import open_checkpoint
from trimvla.policies.act.trimmed import trim
from trimvla.policies.families import family_of, recognise
from trimvla.policies.trimming.width import kept_channels
from trimvla.runtime.bundle.plan import Plan, TokenPlan, load_plan, mask
from trimvla.runtime.bundle.vision_plan import VisionPlan
from trimvla.runtime.errors import CheckpointError, ConfigError, ObservationError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation

SMALLER = msgspec.structs.replace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("act") / "folder")


@pytest.fixture
def changed(tmp_path: Path, folder: Path) -> Callable[..., Path]:
    """The folder with other fields in config.json; its weights are the same file."""

    def made(**fields: Any) -> Path:
        config = json.loads((folder / "config.json").read_text())
        for name in ("model.safetensors", NORMALIZER):
            (tmp_path / name).hardlink_to(folder / name)
        (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
        return tmp_path

    return made


# --- the public class ---


@pytest.mark.parametrize("case", ["a", *(pytest.param(c, marks=pytest.mark.slow) for c in "bc")])
def test_it_computes_what_lerobots_class_computed(tmp_path: Path, case: str) -> None:
    """a: two cameras, a state, the variational training; b: dilated, pre-norm, both states; c: no
    state.
    """
    result = verify_reference(write_reference(tmp_path / case, case))
    assert result.ok, result.failed
    assert result.compared >= 12


@pytest.mark.slow
def test_its_exported_stages_do_too(tmp_path: Path) -> None:
    for case in CASES:
        result = verify_reference(write_reference(tmp_path / case, case), through="onnx")
        assert result.ok, result.failed
        assert result.groups["actions"].through == "onnxruntime"


# --- the folder ---


def test_a_folder_is_recognised_and_its_sizes_are_read(folder: Path) -> None:
    family = recognise(folder)
    opened = family.open_checkpoint(folder)
    assert family.name == "act"
    assert opened.tokenizer is None
    assert opened.cfg == SMALLER(TINY, mean=opened.cfg.mean, std=opened.cfg.std)
    np.testing.assert_allclose(opened.cfg.mean, (IMAGENET_MEAN,) * 2, atol=1e-6)


def test_dead_weights_are_named_and_reach_no_action(tmp_path: Path, folder: Path) -> None:
    dead = dead_names(TINY)
    assert "model.vae_encoder.layers.1.self_attn.in_proj_weight" in dead
    assert "model.encoder_latent_input_proj.weight" in dead
    live, _ = layout(TINY)
    assert not dead & set(live)
    stored = load_file(folder / "model.safetensors")
    assert dead | set(live) == set(stored)
    save_file({name: stored[name] for name in live}, tmp_path / "model.safetensors")
    for name in ("config.json", NORMALIZER):
        (tmp_path / name).hardlink_to(folder / name)
    given = inputs()
    expected, got = (
        build(opened.cfg, opened.weights)(given["images"], given["state"])
        for opened in (open_checkpoint(folder), open_checkpoint(tmp_path))
    )
    assert torch.allclose(expected, got, atol=1e-5)  # mapped weights may lie otherwise in memory


def test_each_camera_and_the_state_reach_the_actions() -> None:
    policy = random_policy()
    given = inputs()
    expected = policy(given["images"], given["state"])
    front = given["images"] * torch.tensor([0.3, 1.0])[:, None, None, None]
    wrist = given["images"] * torch.tensor([1.0, 0.3])[:, None, None, None]
    for images, state in (
        (front, given["state"]),
        (wrist, given["state"]),
        (given["images"], given["state"] * 1.5),
    ):
        assert (policy(images, state) - expected).abs().max() > 1e-3
    # all cameras have the same positions: which one shows what is not known to the network
    assert torch.allclose(policy(given["images"].flip(0), given["state"]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"vision_backbone": "resnet9"},
            r"one of \['resnet18', .*'vision_backbone', got 'resnet9'",
        ),
        ({"feedforward_activation": "glu"}, "'feedforward_activation', got 'glu'"),
        ({"n_obs_steps": 2}, "expected 1 for 'n_obs_steps', got 2"),
        ({"replace_final_stride_with_dilation": True}, "resnet50 or deeper for 'dilated'"),
        ({"dim_model": 64}, r"expected \[64, 512, 1, 1\], got \[32, 512, 1, 1\]"),
        ({"n_encoder_layers": 5}, r"missing weight\(s\): 'model.encoder.layers.4"),
        ({"vision_backbone": "resnet34"}, r"missing weight\(s\): 'model.backbone.layer1.2"),
        ({"type": "smolvla"}, "expected 'type' 'act', got 'smolvla'"),
        ({"input_features": {}}, "expected a camera in 'input_features'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    changed: Callable[..., Path], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(changed(**fields))


def features(**shapes: list[int]) -> dict[str, Any]:
    images = {
        f"observation.images.{name}": {"type": "VISUAL", "shape": shape}
        for name, shape in shapes.items()
    }
    return {**images, "observation.state": {"type": "STATE", "shape": [6]}}


def test_cameras_of_two_sizes_are_refused_with_both(changed: Callable[..., Path]) -> None:
    given = features(front=[3, 48, 80], wrist=[3, 48, 64])
    with pytest.raises(
        CheckpointError, match=r"\[48, 80\] as camera 'front' has them, got \[48, 64\] .*'wrist'"
    ):
        open_checkpoint(changed(input_features=given))


def test_a_camera_without_statistics_is_refused(changed: Callable[..., Path]) -> None:
    given = features(front=[3, 48, 80], side=[3, 48, 80])
    with pytest.raises(CheckpointError, match=r"statistics of 'observation.images.side'"):
        open_checkpoint(changed(input_features=given))


def test_a_folder_without_processors_is_refused(changed: Callable[..., Path]) -> None:
    directory = changed()
    (directory / NORMALIZER).unlink()
    with pytest.raises(CheckpointError, match=r"expected policy_preprocessor_step_\*"):
        open_checkpoint(directory)


def test_a_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="ACT reads no instruction"):
        open_checkpoint(folder, tokenizer=folder / "config.json")


def test_two_states_scaled_in_two_ways_are_refused(changed: Callable[..., Path]) -> None:
    given = {**features(front=[3, 48, 80], wrist=[3, 48, 80])}
    given["observation.environment_state"] = {"type": "ENV", "shape": [2]}
    modes = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ENV": "MIN_MAX", "ACTION": "MEAN_STD"}
    directory = changed(input_features=given, normalization_mapping=modes)
    with pytest.raises(CheckpointError, match="expected one normalisation of both states"):
        open_checkpoint(directory)


def test_the_environments_state_is_left_as_it_is_where_lerobot_leaves_it(
    changed: Callable[..., Path],
) -> None:
    given = {**features(front=[3, 48, 80], wrist=[3, 48, 80])}
    given["observation.environment_state"] = {"type": "ENV", "shape": [2]}
    directory = changed(input_features=given)
    with pytest.raises(CheckpointError, match="encoder_env_state_input_proj"):
        open_checkpoint(directory)  # the weights are those of a policy without one
    stored = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    more = {
        "model.encoder_env_state_input_proj.weight": np.ones((32, 2), np.float32),
        "model.encoder_env_state_input_proj.bias": np.ones(32, np.float32),
        "model.encoder_1d_feature_pos_embed.weight": np.ones((3, 32), np.float32),
    }
    save_file({**stored, **more}, directory / "model.safetensors")
    opened = open_checkpoint(directory)
    assert opened.cfg.read_dim == 8
    assert opened.statistics["state"]["mask"].tolist() == [True] * 6 + [False] * 2


# --- plans and cost ---


def test_a_plan_drops_encoder_layers_and_narrows_their_mlps() -> None:
    policy = random_policy()
    given = inputs()
    dense = policy(given["images"], given["state"])
    for plan in (
        Plan(layers=(0, 3)),
        Plan(channels=(mask(range(24)),) * 4),
        Plan(layers=(1, 2), channels=(mask(range(10)), mask(range(30)))),
    ):
        trimmed = trim(policy, plan)
        assert trimmed.plan == plan
        made = trimmed(given["images"], given["state"])
        assert made.shape == dense.shape
        assert (made - dense).abs().max() > 1e-3
    everything = trim(policy, Plan(layers=(0, 1, 2, 3), channels=(mask(range(48)),) * 4))
    assert torch.allclose(everything(given["images"], given["state"]), dense, atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(layers=(0, 4)), "expected 'layers' below 4, got 4"),
        (Plan(channels=("f",)), "expected 'channels' for 4 kept layers, got 1"),
        (Plan(layers=(0,), channels=(mask([48]),)), "expected 'channels' below 48, got 48"),
        (Plan(steps=2), r"nothing to trim by \['steps'\]"),
        (Plan(recompute=(0,)), r"nothing to trim by \['recompute'\]"),
        (Plan(tokens=TokenPlan(keep=4, after=1)), "nothing to trim by"),
        (Plan(vision=VisionPlan(image_size=32)), "nothing to trim by"),
        (Plan(expert_layers=(0,)), r"nothing to trim by \['expert_layers'\]"),
        (Plan(policy="0" * 16), "expected a plan for policy 'act'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: Plan, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(plan, TINY)


VARIANTS = (
    TINY,
    SMALLER(TINY, pre_norm=True, decoder_layers=3, state_dim=0, vae_layers=0),
    SMALLER(TINY, backbone="resnet50", dilated=True, environment_dim=3),
)


@pytest.mark.parametrize("cfg", VARIANTS)
def test_cost_counts_the_weights_that_are_there(cfg: ActConfig) -> None:
    with torch.device("meta"):
        from trimvla.policies.act.model import Act

        policy = Act.of(cfg)
    report = cost(cfg, Plan())
    for name, module in (("vision", policy.vision), ("action", (policy.encoder, policy.decoder))):
        parts = module if isinstance(module, tuple) else (module,)
        there = sum(weight.numel() for part in parts for weight in part.parameters())
        assert report.stages[name].parameters == there


def test_cost_of_the_default_sizes_is_that_of_the_public_checkpoints() -> None:
    """LeRobot's default policy has 51.6 million parameters, batch norms among them."""
    cfg = PRESETS["act-so101"]
    report = cost(cfg, Plan())
    assert report.parameters == pytest.approx(51.6e6, rel=0.01)
    assert cfg.grid == (15, 20)
    one = cost(cfg, Plan(), cameras=1)
    assert one.stages["vision"].flops * 2 == report.stages["vision"].flops
    half = cost(cfg, Plan(layers=(0, 3)))
    assert half.stages["vision"] == report.stages["vision"]
    assert half.stages["action"].flops < 0.7 * report.stages["action"].flops


def test_the_cost_verb_takes_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert not cli.main(["cost", "--preset", "act-so101", "--layers", "2", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["family"] == "act"
    assert result["stages"]["action"]["flops"] < 0.7 * cost(PRESETS["act-so101"], Plan()).flops


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    policy = random_policy()
    given = inputs()
    with FlopCounterMode(display=False) as counter:
        policy(given["images"], given["state"])
    assert cost(TINY, Plan()).flops == pytest.approx(counter.get_total_flops(), rel=1e-3)


# --- plans that are measured ---


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras and a state; no instruction, which nobody reads."""
    rng = np.random.default_rng(0)
    sides = (4, TINY.image_height, TINY.image_width, 3)
    images, wrist = (rng.integers(0, 256, sides, np.uint8) for _ in TINY.cameras)
    state = rng.normal(size=(4, TINY.state_dim)).astype(np.float32)
    path = tmp_path_factory.mktemp("shard") / "shard.npz"
    np.savez(path, images=images, wrist=wrist, state=state)
    return path


@pytest.mark.parametrize("criterion", ["block-influence", "greedy-chunk"])
def test_trim_keeps_the_encoder_layers_and_channels_that_count(
    criterion: str, folder: Path, shard: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    words = ["trim", str(folder), "--out", str(out), "--calibration", str(shard), "--layers", "2"]
    assert not cli.main([*words, "--mlp-keep", "0.5", "--criterion", criterion])
    plan = load_plan(out)
    opened = open_checkpoint(folder)
    check(plan, opened.cfg)
    assert plan.provenance is not None and plan.provenance.frames == 4
    scores = plan.provenance.scores
    best = sorted(range(4), key=lambda layer: -scores[layer])[:2]
    assert plan.layers == tuple(sorted(best))
    samples = frames_of(opened, [shard], 4, 0).samples
    policy = random_policy()
    assert plan.channels == tuple(
        mask(kept_channels(by_hand(policy, samples)[1][layer], 0.5)) for layer in sorted(best)
    )
    if criterion == "block-influence":
        assert scores == pytest.approx(by_hand(policy, samples)[0], abs=1e-5)
    else:
        assert sorted(scores) == [0.25, 0.5, 0.75, 1.0]


@torch.no_grad()
def by_hand(policy: Act, samples: Sequence[dict[str, Tensor]]) -> tuple[list[float], list[Tensor]]:
    """Influence of each encoder layer, and LoRAP's score of its channels, layer by layer."""
    influence = np.zeros(4)
    into = [torch.zeros(0, TINY.width)] * 4
    behind = [torch.zeros(0, TINY.mlp_hidden)] * 4
    for sample in samples:
        x = policy.encoder.tokens(policy.vision(sample["images"]), sample["state"])
        for index, layer in enumerate(policy.encoder.layers):
            assert isinstance(layer, EncoderLayer)
            y = x + policy.encoder.positions()
            middle = layer.norm1(x + layer.attention(y, y, x))
            into[index] = torch.cat([into[index], middle[0]])
            behind[index] = torch.cat([behind[index], layer.mlp.fc1(middle).relu()[0]])
            after = layer(x, policy.encoder.positions())
            influence[index] += 1 - torch.cosine_similarity(x, after, dim=-1).mean().item()
            x = after
    scores = []
    for index, layer in enumerate(policy.encoder.layers):
        assert isinstance(layer, EncoderLayer)
        rows = (layer.mlp.fc1.weight.square() * into[index].square().mean(dim=0)).sum(dim=1).sqrt()
        squares = layer.mlp.fc2.weight.square().sum(dim=0)
        scores.append(rows + (squares * behind[index].square().mean(dim=0)).sqrt())
    return (influence / len(samples)).tolist(), scores


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--tokens 8", "--tokens"),
        ("--image-size 32", "--image-size"),
        ("--encoder-blocks 1", "--encoder-blocks"),
        ("--patches 2 --steps 2", "--patches, --steps"),
        ("--cache-interval 2", "--cache-interval"),
        ("--guidance 2", "--guidance"),
    ],
)
def test_trim_names_what_this_family_has_not(
    words: str, named: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    assert cli.main(["trim", str(folder), "--out", str(out), *words.split()])
    error = capsys.readouterr().err
    assert f"expected no {named} for a policy of family 'act', which `trim` can make" in error
    assert "smaller by --layers and --mlp-keep alone" in error
    assert not out.exists()


def test_a_criterion_of_a_language_model_is_refused(
    folder: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["trim", str(folder), "--out", str(out), "--calibration", str(shard), "--layers", "2"]
    assert cli.main([*words, "--criterion", "greedy-feature"])
    assert "expected a policy with a tensor 'cognition'" in capsys.readouterr().err


# --- the bundle ---


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "act"
    assert not cli.main(["export", str(folder), "--out", str(out)])
    return out


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (TINY.image_height, TINY.image_width, 3), dtype=np.uint8)
        for name in TINY.cameras
    }
    return Observation(images, "no word of this is read", rng.normal(size=TINY.state_dim))


@pytest.mark.slow
def test_the_bundle_of_a_folder_acts_as_torch_does(folder: Path, bundle: Path) -> None:
    seen = observation()
    opened = open_checkpoint(folder)
    stacked = np.stack(list(seen.images.values())).astype(np.float32) / np.float32(255)
    state = (seen.state - opened.statistics["state"]["mean"]) / (
        opened.statistics["state"]["std"] + 1e-8
    )
    with torch.no_grad():
        made = build(opened.cfg, opened.weights)(
            torch.from_numpy(stacked), torch.from_numpy(state.astype(np.float32))[None]
        )
    scale = opened.statistics["action"]
    expected = made[0].numpy() * scale["std"] + scale["mean"]
    policy = Policy.load(bundle, threads=1)
    result = policy.infer(seen)
    assert np.abs(result.actions - expected).max() < 1e-4
    assert sorted(result.milliseconds) == ["action", "preprocess", "total", "vision"]
    with pytest.raises(ObservationError, match="expected 6 numbers for 'state'"):
        policy.infer(Observation(seen.images, "", np.zeros(5)))
    policy.close()


@pytest.mark.slow
def test_the_bundle_is_proved_again_with_its_source_and_fits_tensorrt(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not cli.main(["verify", str(bundle), "--source", str(folder), "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"], result
    for stage in ("vision", "action"):
        check_operators(bundle / f"{stage}.onnx")


def test_there_is_nothing_to_guide(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(folder), "--out", str(tmp_path / "out"), "--guided"])
    assert "expected no 'guided' for policy 'act'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def policy_bytes(bundle: Path) -> int:
    """Of its stages, weights beside the graphs too."""
    return sum(path.stat().st_size for path in bundle.glob("*.onnx*"))


@pytest.mark.slow
def test_a_trimmed_bundle_in_float16(folder: Path, bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(msgspec.json.encode(Plan(layers=(0, 2, 3))))
    out = tmp_path / "half"
    words = ["export", str(folder), "--out", str(out), "--plan", str(plan), "--dtype", "float16"]
    assert not cli.main(words)
    policy = Policy.load(out, threads=1)
    assert policy.infer(observation()).actions.shape == (TINY.horizon, TINY.action_dim)
    policy.close()
    for stage in ("vision", "action"):
        check_operators(out / f"{stage}.onnx")
    graph = onnx.load(str(out / "vision.onnx"))
    types = describe(graph).types
    convolutions = [types[node.input[1]] for node in graph.graph.node if node.op_type == "Conv"]
    assert convolutions == ["float32"] + ["float16"] * (len(convolutions) - 1), "all but pixels'"
    whole = policy_bytes(bundle)
    assert policy_bytes(out) < 0.55 * whole
    assert not cli.main(["verify", str(out), "--source", str(folder)])
    assert family_of(TINY).name == policy.manifest.family


@pytest.mark.slow
def test_int8_takes_the_transformers_products(
    folder: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This family's action stage is no sampler: its attention is multiplied in int8 too."""
    out = tmp_path / "act-int8"
    words = ["export", str(folder), "--out", str(out), "--calibration", str(shard)]
    assert not cli.main([*words, "--dtype", "int8", "--frames", "2"])
    nodes = onnx.load(out / "action.onnx").graph.node
    products = sum(node.op_type == "MatMul" for node in nodes)
    in_integers = sum(node.op_type == "QuantizeLinear" for node in nodes)
    assert in_integers > products / 2
    assert not cli.main(["verify", str(out), "--source", str(folder), "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"]
