"""Calibration frames for `trim` and `export`: named ones, those of a run's demonstrations, or fresh simulated ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from trimvla.policies.calibrate import Calibration, calibration_from_shards, load_calibration
from trimvla.policies.config import PolicyConfig

SHARDS = "demos/*.npz"
SIMULATED = "tabletop"  # the policy whose pictures come from our own simulator
FRESH_SHARD = 10_000  # seeds from 2,000,000 on


def find_calibration(
    named: Path | None, source: Path, cfg: PolicyConfig, tokenizer: Path, *, frames: int, seed: int
) -> Calibration:
    """The data that is named, else frames of the run folder's demonstrations, else of fresh ones."""
    if named is not None:
        return load_calibration(named, cfg)
    shards = sorted(source.glob(SHARDS))
    if not shards and cfg.name == SIMULATED:
        with tempfile.TemporaryDirectory() as directory:
            return simulate(Path(directory), cfg, tokenizer, frames, seed)
    return calibration_from_shards(shards, cfg, lambda: Tokenizer.from_file(str(tokenizer)), frames, seed)


def simulate(directory: Path, cfg: PolicyConfig, tokenizer: Path, frames: int, seed: int) -> Calibration:
    """Frames of a shard of tabletop demonstrations that no policy was trained on; it stays in the directory."""
    from trimvla.sim import demonstrations

    for _ in demonstrations.make_shards(directory, 1, 1, first=FRESH_SHARD):
        pass
    shard = demonstrations.shard_path(directory, FRESH_SHARD)
    return calibration_from_shards([shard], cfg, lambda: Tokenizer.from_file(str(tokenizer)), frames, seed)
