"""The bench measures what it says: graphs alone, and the whole policy around the same graphs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny_bundle
from trimvla.launch import cli


def test_bench_reports_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    arguments = [
        "bench",
        str(bundle),
        "--instruction",
        "pick up the red cube",
        "--rounds",
        "4",
        "--warmup",
        "1",
        "--json",
    ]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["L0_ms"]) == {"vision", "language", "action", "total"}
    assert set(result["L2_ms"]) == {"preprocess", "vision", "language", "action", "total"}
    assert all(row["p50"] <= row["p99"] for layer in ("L0_ms", "L2_ms") for row in result[layer].values())
    assert result["runs_on"]["vision"]


def test_bench_refuses_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "tabletop", "--rounds", "0"]) != 0
    assert "--rounds" in capsys.readouterr().err
