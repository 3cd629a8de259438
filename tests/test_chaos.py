"""A short run of `tests.chaos`: faults at random, no violation, nothing left behind."""

from __future__ import annotations

from pathlib import Path

from tests import chaos, tiny_bundle


def test_chaos_violates_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    result = chaos.play(20.0, seed=1, bundle=str(bundle), loops=1)
    assert (result.violations, result.left) == ([], []), result
    assert sum(result.faults.values()) >= 5, result
    assert result.actions > 0, result
    assert result.holds > 0, result
