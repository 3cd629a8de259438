"""The table of families, and the readers that all of them share: one row behind it is CogACT's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.tiny_policy import TINY, official_checkpoint, write_official
from trimvla.policies import families
from trimvla.policies.cogact.checkpoint import load_official
from trimvla.policies.cogact.family import FAMILY as COGACT
from trimvla.policies.families import (
    Family,
    family_of,
    find_family,
    find_preset,
    parse_config,
    recognise,
)
from trimvla.policies.statistics import lerobot_modes, read_lerobot, read_openpi, read_openvla
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import CheckpointError, ConfigError

NORMALIZER = "policy_preprocessor_step_5_normalizer_processor.safetensors"


@pytest.fixture
def smolvla(shared_dir: Path) -> Path:
    return shared_dir / "fixtures" / "smolvla_tiny_a"


def test_a_config_without_a_family_is_of_the_first() -> None:
    assert parse_config(TINY.to_dict()) == TINY
    assert family_of(TINY) is COGACT
    assert find_preset("cogact-base").name == "cogact-base"


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_every_row_is_a_family_under_its_own_name(name: str) -> None:
    row = find_family(name)
    assert row.name == name
    for cfg in row.presets.values():
        assert parse_config(cfg.to_dict()) == cfg


def test_a_family_of_ones_own_is_named_by_module_and_attribute() -> None:
    assert find_family("trimvla.policies.cogact.family:FAMILY") is COGACT
    with pytest.raises(ConfigError, match="expected a Family"):
        find_family("trimvla.policies.families:FIRST")
    with pytest.raises(ConfigError, match="no_such_module"):
        find_family("no_such_module:FAMILY")


def test_a_family_that_a_file_names_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest holds its policy's config; reading that runs no code of somebody's own."""
    mark = tmp_path / "imported"
    (tmp_path / "spy_family.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="imported only where you name it"):
        parse_config({"family": "spy_family:FAMILY"})
    assert not mark.exists()
    with pytest.raises(ConfigError, match="expected 'FAMILY' in 'spy_family', found none"):
        find_family("spy_family:FAMILY")
    assert mark.exists()


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"cogact.*got 'other'"):
        parse_config({"family": "other"})


def test_a_directory_of_nothing_known_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "something"}')
    with pytest.raises(ConfigError, match=r"checkpoints/\*\.pt"):
        recognise(tmp_path)


def test_rows_and_costs_need_no_torch() -> None:
    code = (
        "import sys; from trimvla.policies.families import FAMILIES, find_family\n"
        "from trimvla.runtime.bundle.plan import Plan\n"
        "for name in FAMILIES:\n"
        "    row = find_family(name)\n"
        "    for cfg in row.presets.values(): row.cost(cfg, Plan())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_row_opens_and_builds_what_the_loader_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_official(tmp_path, official_checkpoint())
    action = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"lab": {"action": action}}))
    monkeypatch.setitem(COGACT.presets, "tiny", TINY)
    row: Family = recognise(tmp_path)
    opened = row.open_checkpoint(tmp_path, preset="tiny")
    built = row.build(opened.cfg, opened.weights)
    assert opened.statistics_key == "lab"
    assert opened.tokenizer is None
    expected = load_official(tmp_path, TINY).state_dict()
    assert all(torch.equal(expected[name], value) for name, value in built.state_dict().items())
    described = row.describe(opened, Plan())
    assert (described.images.size, described.action.dim) == (TINY.image_size, 7)


def test_lerobots_statistics_are_read_by_our_names(smolvla: Path) -> None:
    found = read_lerobot(smolvla)
    stored = load_file(smolvla / NORMALIZER)
    assert np.array_equal(found.array("state", "mean"), stored["observation.state.mean"])
    assert np.array_equal(found.array("action", "std"), stored["action.std"])
    assert lerobot_modes(smolvla) == {"state": "mean_std", "action": "mean_std"}


def test_a_missing_statistic_is_refused_with_those_that_exist(smolvla: Path) -> None:
    found = read_lerobot(smolvla)
    with pytest.raises(CheckpointError, match=r"expected 'q10' of 'action', got .*'mean'"):
        found.array("action", "q10")
    with pytest.raises(CheckpointError, match=r"'velocity'.*'action', 'state'"):
        found.array("velocity", "mean")


def grouped(directory: Path, source: Path) -> Path:
    """As smolvla_base has them: two data sets."""
    stored = load_file(source / NORMALIZER)
    both = {f"{group}.buffer.{k}": v for group in ("so100", "so101") for k, v in stored.items()}
    save_file(both, directory / NORMALIZER)
    return directory


def test_statistics_grouped_by_data_set_need_a_key(tmp_path: Path, smolvla: Path) -> None:
    directory = grouped(tmp_path, smolvla)
    with pytest.raises(
        ConfigError, match=r"--statistics-key as one of \['so100', 'so101'\], got None"
    ):
        read_lerobot(directory)
    with pytest.raises(ConfigError, match=r"\['so100', 'so101'\], got 'aloha'"):
        read_lerobot(directory, "aloha")
    found = read_lerobot(directory, "so100")
    assert found.key == "so100"
    assert np.array_equal(found.array("state", "std"), read_lerobot(smolvla).array("state", "std"))


def test_a_key_for_statistics_without_groups_is_refused(smolvla: Path) -> None:
    with pytest.raises(ConfigError, match="not grouped by data set, got 'so100'"):
        read_lerobot(smolvla, "so100")


def test_a_checkpoint_without_statistics_is_refused(tmp_path: Path) -> None:
    save_file({"model.weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="normalizer_processor"):
        read_lerobot(tmp_path)


def test_buffers_in_the_weights_are_read(tmp_path: Path) -> None:
    mean = np.arange(3, dtype=np.float32)
    stored = {
        "normalize_inputs.buffer_observation_state.mean": mean,
        "unnormalize_outputs.buffer_action.std": mean + 1,
        "model.weight": np.zeros(3, np.float32),
    }
    save_file(stored, tmp_path / "model.safetensors")
    found = read_lerobot(tmp_path)
    assert np.array_equal(found.array("state", "mean"), mean)
    assert np.array_equal(found.array("action", "std"), mean + 1)


def test_an_unknown_mode_of_normalisation_is_refused(tmp_path: Path) -> None:
    mapping = {"STATE": "MEAN_STD", "ACTION": "QUANTILE10"}
    (tmp_path / "config.json").write_text(json.dumps({"normalization_mapping": mapping}))
    with pytest.raises(CheckpointError, match="ACTION, got 'QUANTILE10'"):
        lerobot_modes(tmp_path)


def test_openpis_statistics_are_read_by_asset(tmp_path: Path) -> None:
    lists = {"mean": [1.0, 2.0], "std": [1.0, 1.0]}
    for asset in ("lab/arm", "lab/other"):
        (tmp_path / "assets" / asset).mkdir(parents=True)
        table = {"norm_stats": {"state": lists, "actions": lists}}
        (tmp_path / "assets" / asset / "norm_stats.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"\['lab/arm', 'lab/other'\]"):
        read_openpi(tmp_path)
    assert read_openpi(tmp_path, "lab/arm").array("action", "mean").tolist() == [1.0, 2.0]


def test_openvlas_and_dexbotics_statistics_are_read(shared_dir: Path, tmp_path: Path) -> None:
    found = read_openvla(shared_dir / "fixtures" / "dbcogact_tiny_a" / "norm_stats.json")
    assert (found.key, len(found.array("action", "min"))) == ("default", 7)
    table = {
        "a": {"action": {"q01": [0.0], "q99": [1.0]}},
        "b": {"action": {"q01": [0.0], "q99": [1.0]}},
    }
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"\['a', 'b'\]"):
        read_openvla(path)
    assert read_openvla(path, "b").key == "b"
