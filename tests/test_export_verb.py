"""`trimvla export` finds the parts of a policy, and says which one is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimvla.launch import cli

OFFICIAL = "checkpoints/step.pt"


def official(directory: Path) -> Path:
    """A folder that is recognised as an official checkpoint of CogACT."""
    (directory / OFFICIAL).parent.mkdir()
    (directory / OFFICIAL).write_bytes(b"")
    return directory


def test_a_source_of_nothing_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "bundle")]) == 1
    message = capsys.readouterr().err
    assert "expected a checkpoint of a known family" in message
    assert "checkpoints/*.pt" in message and "policy.safetensors of a run" in message


def test_a_source_without_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(official(tmp_path)), "--out", str(tmp_path / "b")]
    assert cli.main([*words, "--preset", "tabletop"]) == 1
    expected = "expected statistics.json or dataset_statistics.json, got neither"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("asked", [[], ["--statistics-key", "other"]])
def test_an_unclear_data_set_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    table = {"a": {"action": {"q01": [0], "q99": [1]}}, "b": {}}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(table))
    words = ["export", str(official(tmp_path)), "--out", str(tmp_path / "b")]
    assert cli.main([*words, "--preset", "tabletop", *asked]) == 1
    assert "--statistics-key as one of ['a', 'b']" in capsys.readouterr().err


def test_an_official_checkpoint_needs_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"bridge": {}}))
    words = ["export", str(official(tmp_path)), "--out", str(tmp_path / "bundle")]
    assert cli.main(words) == 1
    assert "expected --preset" in capsys.readouterr().err
