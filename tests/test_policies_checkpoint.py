"""Checkpoints: what loads, and the errors that name what does not."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_policy import TINY, inputs, official_checkpoint, random_policy, write_official

from trimvla.policies.cogact.checkpoint import load, load_official, save
from trimvla.policies.nn.vision import Vit
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.runtime.errors import CheckpointError


@pytest.fixture
def groups():
    torch.manual_seed(0)
    return official_checkpoint()


def test_official_layout_loads_without_dead_weights(tmp_path, groups):
    policy = load_official(write_official(tmp_path, groups), TINY)
    torch.testing.assert_close(
        policy.state_dict()["vision.encoders.0.patch_embed.proj.weight"],
        groups["vision_backbone"]["dino_featurizer.patch_embed.proj.weight"].flatten(1),
    )
    assert torch.isfinite(policy(*inputs())).all()


def test_official_patch_embedding_is_the_convolution(tmp_path, groups):
    vit = load_official(write_official(tmp_path, groups), TINY).vision.encoders[0]
    assert isinstance(vit, Vit)
    weights = groups["vision_backbone"]
    pixels = torch.randn(1, 3, 32, 32)
    expected = torch.nn.functional.conv2d(
        pixels,
        weights["dino_featurizer.patch_embed.proj.weight"],
        weights["dino_featurizer.patch_embed.proj.bias"],
        stride=8,
    )
    torch.testing.assert_close(
        vit.patch_embed(pixels), expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=0
    )


def test_unused_groups_and_absent_dead_weights_are_fine(tmp_path, groups):
    del groups["llm_backbone"]["llm.lm_head.weight"]
    groups["ema_diffusion"] = {"net.whatever": torch.zeros(1)}
    policy = load_official(write_official(tmp_path, groups), TINY)
    assert "whatever" not in str(policy.state_dict().keys())


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("vision_backbone", "siglip_featurizer.blocks.0.mlp.fc1.bias"),
        ("projector", "projector.2.weight"),
        ("llm_backbone", "llm.model.layers.1.mlp.up_proj.weight"),
        ("action_model", "net.z_embedder.uncondition"),
    ],
)
def test_missing_and_misshapen_weights_are_named(tmp_path, groups, group, key):
    tensor = groups[group].pop(key)
    with pytest.raises(CheckpointError, match=re.escape(f"1 missing weight(s): '{group}.{key}'")):
        load_official(write_official(tmp_path, groups), TINY)
    groups[group][key] = torch.zeros(5, *tensor.shape)
    shapes = f"expected {list(tensor.shape)}, got {[5, *tensor.shape]} for '{group}.{key}'"
    with pytest.raises(CheckpointError, match=re.escape(shapes)):
        load_official(write_official(tmp_path, groups), TINY)


def test_unknown_weight_and_group_are_named(tmp_path, groups):
    groups["action_model"]["net.adapter.weight"] = torch.zeros(1)
    with pytest.raises(
        CheckpointError,
        match=re.escape("1 unexpected weight(s): 'action_model.net.adapter.weight'"),
    ):
        load_official(write_official(tmp_path, groups), TINY)
    with pytest.raises(CheckpointError, match=r"unexpected weight.*'value_model'"):
        load_official(write_official(tmp_path, {**groups, "value_model": {}}), TINY)


def test_dead_weights_must_still_fit(tmp_path, groups):
    groups["vision_backbone"]["siglip_featurizer.attn_pool.latent"] = torch.zeros(1, 1, 7)
    with pytest.raises(CheckpointError, match=r"attn_pool\.latent"):
        load_official(write_official(tmp_path, groups), TINY)


def test_broken_files_are_checkpoint_errors(tmp_path, groups):
    with pytest.raises(CheckpointError, match=r"exactly one \.pt"):
        load_official(tmp_path, TINY)
    path = write_official(tmp_path, groups) / "checkpoints" / "tiny.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="expected a torch checkpoint"):
        load_official(tmp_path, TINY)
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        load(path)


def test_conversion_of_dtype(tmp_path, groups):
    policy = load_official(write_official(tmp_path, groups), TINY, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}


def test_own_file_round_trips_with_its_config(tmp_path):
    policy = random_policy()
    path = save(policy, tmp_path / "policy.safetensors", {"recipe": "none"})
    loaded = load(path)
    assert loaded.cfg == TINY
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in policy.state_dict().items()
    )
    assert [file.name for file in tmp_path.iterdir()] == ["policy.safetensors"]


def test_own_file_in_half_precision(tmp_path):
    policy = random_policy()
    small, large = (
        save(policy, tmp_path / f"{dtype}", dtype=dtype) for dtype in (torch.float16, None)
    )
    assert small.stat().st_size < 0.6 * large.stat().st_size
    for name, value in load(small).state_dict().items():
        assert torch.equal(value, policy.state_dict()[name].half().float()), name


def test_own_file_against_another_config(tmp_path):
    path = save(random_policy(), tmp_path / "policy.safetensors")
    data = TINY.to_dict()
    deeper = PolicyConfig.from_dict({**data, "language": {**data["language"], "layers": 4}})
    with pytest.raises(CheckpointError, match=r"missing weight.*language\.layers\.3"):
        load(path, deeper)
