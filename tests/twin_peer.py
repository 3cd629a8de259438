"""A peer of `bench` for tests: our own torch policy, opened from a checkpoint in LeRobot's layout.

    python -m tests.twin_peer CHECKPOINT [OFFSET]

OFFSET is added to its actions.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.smolvla_policy import act
from trimvla.policies.smolvla.checkpoint import build
from trimvla.policies.smolvla.lerobot.source import open_checkpoint


def main(directory: str, offset: str = "0") -> None:
    """Answer line by line."""
    opening = json.loads(sys.stdin.readline())
    torch.set_num_threads(opening["threads"])
    with np.load(opening["inputs"]) as stored:
        inputs = {name: torch.from_numpy(stored[name]) for name in stored.files}
    checkpoint = open_checkpoint(Path(directory))
    policy = build(checkpoint.cfg, checkpoint.weights)
    print(json.dumps({"name": "twin"}), flush=True)
    for _ in sys.stdin:
        start = time.monotonic_ns()
        actions = act(policy, inputs) + float(offset)
        took = (time.monotonic_ns() - start) / 1e6
        path = Path(opening["folder"]) / "actions.npy"
        np.save(path, actions.numpy())
        print(json.dumps({"milliseconds": took, "actions": str(path)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
