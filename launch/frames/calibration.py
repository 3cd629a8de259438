"""Calibration frames for `trim` and `export`: named ones, those of a run's demonstrations, or fresh
simulated ones.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import (
    Calibration,
    calibration_from_shards,
    load_calibration,
)
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError

SHARDS = "demos/*.npz"
RECORDINGS = (".mcap", ".partial")
SIMULATED = "tabletop"  # the policy whose images come from our own simulator
# seeds that no training uses: 1,000,000 and as many times its episodes further
FRESH_SHARD = 10_000
# times as many episodes are played as frames are drawn: hardly two are of the same scene
EPISODES_A_FRAME = 2


def find_calibration(
    named: Path | None, source: Path, cfg: PolicyConfig, tokenizer: Path, *, frames: int, seed: int
) -> Calibration:
    """The data that is named, else frames of the run folder's demonstrations, else of fresh
    ones.
    """
    if named is not None and named.suffix in RECORDINGS:
        from trimvla.launch.frames.recorded import calibration_from_recording

        return calibration_from_recording(
            named, cfg, load_tokenizer(tokenizer, error=ConfigError), frames, seed
        )
    if named is not None and is_data_set(named):
        from trimvla.launch.frames.data_set import calibration_from_data_set

        return calibration_from_data_set(
            named, cfg, load_tokenizer(tokenizer, error=ConfigError), frames, seed
        )
    if named is not None:
        return load_calibration(named, cfg)
    shards = sorted(source.glob(SHARDS))
    if not shards and cfg.name == SIMULATED:
        with tempfile.TemporaryDirectory() as directory:
            return simulate(
                Path(directory),
                cfg,
                tokenizer,
                frames=frames,
                seed=seed,
                episodes=max(1, EPISODES_A_FRAME * frames),
            )
    return calibration_from_shards(
        shards, cfg, lambda: load_tokenizer(tokenizer, error=ConfigError), frames, seed
    )


def is_data_set(path: Path) -> bool:
    """Whether a path is a folder that should be a LeRobot data set: one without shards."""
    return path.is_dir() and ((path / "meta").is_dir() or not any(path.glob("*.npz")))


def simulate(
    directory: Path,
    cfg: PolicyConfig,
    tokenizer: Path,
    *,
    frames: int,
    seed: int,
    env: str = SIMULATED,
    episodes: int | None = None,
) -> Calibration:
    """Frames of a shard of demonstrations that no policy was trained on; it stays in the directory.

    `episodes`: how many of the tabletop's are played at most; a whole shard's where left out.
    They are what takes the time.

    Raises:
        ConfigError: the environment's expert makes no demonstrations, or something that it needs is
            not installed.
    """
    from trimvla.sim.simpler import demonstrations as simpler_demonstrations
    from trimvla.sim.tabletop import demonstrations

    family, _, task = env.partition(":")
    if family == "simpler":
        # which of the numbered states are played does not matter here
        task = task.partition(":")[0]
        shard = simpler_demonstrations.shard_path(directory, task, FRESH_SHARD)
        making = simpler_demonstrations.make_shards(
            directory, 1, 1, first=FRESH_SHARD, names=(task,)
        )
    elif family == SIMULATED:
        shard = demonstrations.shard_path(directory, FRESH_SHARD)
        whole = demonstrations.SHARD_EPISODES
        making = demonstrations.make_shards(
            directory, 1, 1, first=FRESH_SHARD, episodes=min(episodes or whole, whole)
        )
    else:
        raise ConfigError(
            f"expected tabletop or simpler:TASK, which have demonstrations, got {env!r}"
        )
    for _ in making:
        pass
    return calibration_from_shards(
        [shard], cfg, lambda: load_tokenizer(tokenizer, error=ConfigError), frames, seed
    )
