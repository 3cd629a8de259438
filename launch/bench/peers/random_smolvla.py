"""A SmolVLA checkpoint of random weights at its published size, in LeRobot's layout.

    python -m trimvla.launch.bench.peers.random_smolvla DIR [--cameras 2]

Both LeRobot and `trimvla export` open it, so both can be measured where no checkpoint is at hand:
a latency does not depend on the weights' values. Makes it; measures nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trimvla.policies.smolvla.config import PRESETS, SmolVlaConfig
from trimvla.policies.smolvla.lerobot.save import save_lerobot
from trimvla.policies.smolvla.model import SmolVla


def byte_tokenizer(most: int = 512) -> Tokenizer:
    """One id a byte, below `most`: prompts have a usual length, and every instruction works."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: most - 3]
    vocabulary = {letter: index + 3 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_random(cfg: SmolVlaConfig, directory: Path, seed: int = 0) -> Path:
    """Weights as torch draws them for each layer; statistics that change nothing."""
    torch.manual_seed(seed)
    dims = {"state": cfg.state_dim, "action": cfg.action_dim}
    return save_lerobot(
        SmolVla.of(cfg).eval(),
        directory,
        statistics={name: {"mean": [0.0] * dim, "std": [1.0] * dim} for name, dim in dims.items()},
        tokenizer=byte_tokenizer(),
    )


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cameras", type=int, choices=(1, 2, 3), default=2)
    asked = parser.parse_args()
    cfg = PRESETS["smolvla-base"]
    write_random(
        msgspec.structs.replace(cfg, cameras=cfg.cameras[: asked.cameras]), asked.directory
    )


if __name__ == "__main__":
    main()
