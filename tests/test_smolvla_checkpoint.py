"""LeRobot's SmolVLA checkpoints: read as they are, and refused with the words that help."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from smolvla_policy import TINY, act, inputs, write_checkpoint, write_config

from trimvla.policies.families import find_family, parse_config, recognise
from trimvla.policies.smolvla.checkpoint import build, dead_names, layout, open_weights
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.lerobot.source import open_checkpoint
from trimvla.runtime.errors import CheckpointError, ConfigError

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return tmp_path


def change(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace weights by names with `/` for dots, or leave them out."""
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in changed.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS)


def test_a_checkpoint_gives_its_config_its_weights_and_its_cameras(tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path)
    found = open_checkpoint(tmp_path)
    assert found.cfg == msgspec.structs.replace(TINY, prompt=found.cfg.prompt)
    assert found.cfg.prompt.longest == TINY.prompt.longest
    assert found.cameras == ("front", "wrist")
    assert found.tokenizer is None
    built = build(found.cfg, found.weights)
    for name, weight in policy.state_dict().items():
        assert torch.equal(built.state_dict()[name], weight), name
    assert torch.allclose(act(built, inputs()), act(policy, inputs()), atol=1e-5)


def test_the_table_finds_it_and_its_config_survives_json(folder: Path) -> None:
    family = recognise(folder)
    assert family.name == "smolvla"
    cfg = open_checkpoint(folder).cfg
    again = parse_config(json.loads(json.dumps(cfg.to_dict())))
    assert again == cfg
    assert again.fingerprint == cfg.fingerprint
    assert find_family("smolvla").presets["smolvla-base"].visual_tokens == 192


def test_weights_that_no_action_depends_on_are_never_read(folder: Path) -> None:
    names, dead = layout(TINY)
    stored = set(load_file(folder / WEIGHTS))
    assert stored - set(names) <= dead
    assert not set(names) & dead
    assert any(name.endswith("lm_head.weight") for name in stored & dead)
    deepest = "text_model.layers.4.mlp.gate_proj.weight"
    assert any(name.endswith(deepest) for name in dead)
    weights = open_weights(folder, TINY)
    assert set(weights) == set(names.values())


def test_half_precision_in_the_file_becomes_float32(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    halved = {name: t.bfloat16() if "vlm." in name else t for name, t in tensors.items()}
    save_file(halved, folder / WEIGHTS)
    found = open_checkpoint(folder)
    built = build(found.cfg, found.weights)
    assert {weight.dtype for weight in built.parameters()} == {torch.float32}
    assert bool(torch.isfinite(act(built, inputs())).all())


def test_normalisation_buffers_of_old_files_are_statistics_and_no_weights(folder: Path) -> None:
    (folder / "policy_preprocessor_step_5_normalizer_processor.safetensors").unlink()
    buffers = {
        "normalize_inputs.buffer_observation_state.mean": torch.arange(5.0),
        "normalize_inputs.buffer_observation_state.std": torch.ones(5),
        "unnormalize_outputs.buffer_action.mean": torch.arange(4.0),
        "unnormalize_outputs.buffer_action.std": torch.ones(4),
    }
    change(folder, **buffers)
    found = open_checkpoint(folder)
    assert found.statistics["state"]["mean"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.statistics["action"]["std"].tolist() == [1.0] * 4


def test_empty_camera_slots_cost_nothing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    image = config["input_features"]["observation.images.front"]
    config["input_features"]["observation.images.empty_camera_0"] = image
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).cameras == ("front", "wrist")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "pi0"}, "expected 'type' 'smolvla', got 'pi0'"),
        ({"resize_imgs_with_padding": [32, 48]}, r"two equal sides.*\[32, 48\]"),
        ({"resize_imgs_with_padding": None}, "two equal sides.*got None"),
        ({"resize_imgs_with_padding": [36, 36]}, "a multiple of 8.*'image_size', got 36"),
        ({"adapt_to_pi_aloha": True}, "expected False for 'adapt_to_pi_aloha', got True"),
        ({"add_image_special_tokens": True}, "'add_image_special_tokens'"),
        ({"attention_mode": "both"}, "one of .*'attention_mode', got 'both'"),
        ({"patch_positions": "other"}, "'patch_positions', got 'other'"),
        ({"num_vlm_layers": 7}, "expected the 7 decoder layers of 'num_vlm_layers', got 5"),
        ({"num_expert_layers": 2}, "'num_expert_layers', got 2"),
        ({"vlm_model_name": "someone/else"}, "'vlm_model_name' as one of .*got 'someone/else'"),
        ({"input_features": {}}, "a camera in 'input_features'|'observation.state'"),
        (
            {"output_features": {}},
            r"'action' with a shape of one number in 'output_features', got \[\]",
        ),
        ({"chunk_size": 0}, "a number from 1 on for 'chunk_size', got 0"),
        ({"max_action_dim": 3}, "action_dim from 1 to 3, got 4"),
        ({"normalization_mapping": {"VISUAL": "MEAN_STD"}}, "IDENTITY for VISUAL"),
        (
            {"self_attn_every_n_layers": 3},
            r"expected \[16, 16\], got \[16, 24\] for .*layers.2.*k_proj",
        ),
    ],
)
def test_a_config_that_is_not_done_here_is_refused(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    write_config(folder, **fields)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(folder)
    assert str(folder) in str(raised.value)


def test_a_missing_weight_is_named(folder: Path) -> None:
    name = "model.vlm_with_expert.lm_expert.layers.1.mlp.up_proj.weight"
    change(folder, **{name: None})
    with pytest.raises(CheckpointError, match=f"1 missing weight.*{name}"):
        open_checkpoint(folder)


def test_an_unknown_weight_is_named(folder: Path) -> None:
    change(folder, **{"model.somebody.else": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"1 unexpected weight.*model.somebody.else"):
        open_checkpoint(folder)


def test_weights_of_another_language_model_are_refused(folder: Path) -> None:
    model = json.loads((folder / "vlm" / "config.json").read_text())
    model["text_config"]["head_dim"] = 12
    (folder / "vlm" / "config.json").write_text(json.dumps(model))
    with pytest.raises(CheckpointError, match=r"multiple of 12.*got 32 rows.*another model"):
        open_checkpoint(folder)


def test_weights_of_another_family_are_refused(folder: Path) -> None:
    save_file({"paligemma_with_expert.x": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"missing weight"):
        open_checkpoint(folder)


def test_statistics_of_another_robot_are_refused(folder: Path) -> None:
    path = folder / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    statistics = load_file(path)
    statistics["action.mean"] = torch.zeros(7)
    save_file(statistics, path)
    with pytest.raises(CheckpointError, match=r"expected 4 numbers.*'mean' of 'action', got 7"):
        open_checkpoint(folder)


def test_statistics_by_data_set_need_a_key(folder: Path) -> None:
    path = folder / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    statistics = {
        f"{key}.buffer.{name}": tensor.clone()
        for name, tensor in load_file(path).items()
        for key in ("so100", "so101")
    }
    save_file(statistics, path)
    with pytest.raises(ConfigError, match=r"--statistics-key as one of \['so100', 'so101'\]"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, statistics_key="so101").statistics_key == "so101"


def test_a_preset_of_other_sizes_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"sizes of --preset smolvla-base.*'vision'"):
        open_checkpoint(folder, preset="smolvla-base")
    with pytest.raises(ConfigError, match=r"--preset as one of .*got 'pi0'"):
        open_checkpoint(folder, preset="pi0")


def test_the_tokenizer_is_found_beside_the_model_or_named(folder: Path) -> None:
    assert "SmolVLM2" in find_family("smolvla").tokenizer_hint
    (folder / "vlm" / "tokenizer.json").write_text("{}")
    assert open_checkpoint(folder).tokenizer == folder / "vlm" / "tokenizer.json"
    other = folder / "other.json"
    assert open_checkpoint(folder, tokenizer=other).tokenizer is None
    shutil.copy(folder / "vlm" / "tokenizer.json", other)
    assert open_checkpoint(folder, tokenizer=other).tokenizer == other


def test_a_config_of_another_family_or_with_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy config"):
        parse_config({**TINY.to_dict(), "horizon": "many"})
    with pytest.raises(ConfigError, match=r"cameras of different names"):
        SmolVlaConfig.from_dict({**TINY.to_dict(), "cameras": ["a", "a"]})
    assert dead_names(TINY)
