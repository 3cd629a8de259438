"""A short run of `tests.chaos`: faults at random, no violation, nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests import chaos, tiny_bundle


@pytest.mark.alone
def test_chaos_violates_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where others' directories come and go
    monkeypatch.setattr(tempfile, "tempdir", None)
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    result = chaos.play(20.0, seed=1, bundle=str(bundle), loops=1)
    assert (result.violations, result.left) == ([], []), result
    assert sum(result.faults.values()) >= 5, result
    assert result.actions > 0, result
    assert result.holds > 0, result
