"""A peer for `trimvla bench --peer`: LeRobot's own SmolVLA, eager or compiled.

    OTHER_ENVIRONMENT/bin/python lerobot_smolvla.py CHECKPOINT [--compile]

Runs in an environment of its own, with lerobot 0.4, and imports nothing of trimvla. Speaks the
lines that `trimvla.launch.bench.peers.peer` describes. The checkpoint is opened strictly by
LeRobot's class in float32, and `sample_actions` is what is timed: tensors in, actions out. What
LeRobot imports and inference never calls (torchvision, datasets and the like) may be missing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

NEVER_CALLED = (
    "av",
    "cv2",
    "datasets",
    "deepdiff",
    "diffusers",
    "gymnasium",
    "imageio",
    "jsonlines",
    "pandas",
    "peft",
    "PIL",
    "pyarrow",
    "pynput",
    "rerun",
    "serial",
    "torchcodec",
    "torchvision",
    "wandb",
)

OTHER_POLICY = "lerobot.policies.groot.modeling_groot"  # imported along; needs all of diffusers


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a module without content of each of `NEVER_CALLED` that is not installed."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`; it is asked last."""
        if name.partition(".")[0] not in NEVER_CALLED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module that has every attribute."""
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


class Anything(types.ModuleType):
    """A module whose attributes are stand-ins."""

    def __getattr__(self, name: str) -> object:
        """A stand-in; private names are really absent."""
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class Tokens:
    """In place of the image processor, of which the policy asks two ids at most."""

    fake_image_token_id = 0
    global_image_token_id = 0

    @property
    def tokenizer(self) -> Tokens:
        """Itself."""
        return self


def open_policy(directory: Path) -> Any:  # noqa: ANN401 - of a package that is not here
    """LeRobot's policy with the folder's weights, strictly, in float32 on the CPU."""
    transformers = importlib.import_module("transformers")
    # first, else it believes that torchvision is there
    importlib.import_module("transformers.utils")
    transformers.AutoProcessor.from_pretrained = staticmethod(lambda *_, **__: Tokens())
    sys.meta_path.append(Absent())
    sys.modules[OTHER_POLICY] = Anything(OTHER_POLICY)
    modelling = importlib.import_module("lerobot.policies.smolvla.modeling_smolvla")
    os.chdir(directory)  # `vlm_model_name` may be a folder inside
    policy = modelling.SmolVLAPolicy.from_pretrained(str(directory), strict=True)
    return policy.float().eval()


def arguments(inputs: dict[str, np.ndarray], longest: int, pad: int) -> tuple[Any, ...]:
    """What `sample_actions` takes: images, masks, ids, mask of ids, state, noise.

    Images float[C, S, S, 3] from 0 to 1 become float[1, 3, S, S] from -1 to 1, one a camera; ids
    are filled up to the longest prompt, as LeRobot's processor does.
    """
    images = [torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1 for image in inputs["images"]]
    masks = [torch.ones(1, dtype=torch.bool) for _ in images]
    count = int(inputs["last"][0]) + 1
    ids = torch.full((1, longest), pad, dtype=torch.int64)
    ids[0, :count] = torch.from_numpy(inputs["input_ids"][0, :count])
    mask = (torch.arange(longest) < count)[None]
    state = torch.from_numpy(inputs["state"])
    return images, masks, ids, mask, state, torch.from_numpy(inputs["noise"])


def serve(directory: Path, compiled: bool, answers: TextIO) -> None:
    """Read lines, answer each, until they end."""
    opening = json.loads(sys.stdin.readline())
    torch.set_num_threads(opening["threads"] or len(os.sched_getaffinity(0)))
    with np.load(opening["inputs"]) as stored:
        inputs = {name: stored[name] for name in stored.files}
    policy = open_policy(directory)
    pad = policy.model.vlm_with_expert.config.pad_token_id
    *given, noise = arguments(inputs, policy.config.tokenizer_max_length, pad)
    sample = policy.model.sample_actions
    sample = torch.compile(sample) if compiled else sample
    way = "compiled" if compiled else "eager"
    answer(answers, {"name": f"lerobot {version('lerobot')}, torch {torch.__version__} {way}"})
    for number, _ in enumerate(sys.stdin):
        start = time.monotonic_ns()
        with torch.inference_mode():
            actions: Tensor = sample(*given, noise=noise)
        took = (time.monotonic_ns() - start) / 1e6
        path = Path(opening["folder"]) / f"actions{number % 2}.npy"
        np.save(path, actions.numpy())
        answer(answers, {"milliseconds": took, "actions": str(path)})


def version(package: str) -> str:
    """Of an installed package."""
    metadata = importlib.import_module("importlib.metadata")
    return metadata.version(package)


def answer(answers: TextIO, fields: dict[str, object]) -> None:
    """One line."""
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def main() -> None:
    """Keep the answers apart from what libraries print."""
    parser = argparse.ArgumentParser(description="LeRobot's SmolVLA as a peer of trimvla bench")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(asked.checkpoint.resolve(), asked.compile, answers)


if __name__ == "__main__":
    main()
