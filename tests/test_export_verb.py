"""`trimvla export` finds the parts of a policy, and says which one is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimvla.launch import cli
from trimvla.launch.exporting.stream import choose_key
from trimvla.runtime.errors import ConfigError


def test_the_only_statistics_are_taken() -> None:
    assert choose_key({"tabletop": {}}, None) == "tabletop"


@pytest.mark.parametrize("asked", [None, "other"])
def test_an_unclear_dataset_is_refused(asked: str | None) -> None:
    with pytest.raises(ConfigError, match=r"\['a', 'b'\]"):
        choose_key({"a": {}, "b": {}}, asked)


def test_a_source_without_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "bundle")]) == 1
    assert (
        "expected statistics.json or dataset_statistics.json, got neither"
        in capsys.readouterr().err
    )


def test_an_official_checkpoint_needs_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"bridge": {}}))
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "bundle")]) == 1
    assert "expected --preset" in capsys.readouterr().err
