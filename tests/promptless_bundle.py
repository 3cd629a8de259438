"""A whole bundle of a few kilobytes that reads no instruction and draws no noise: one real graph
over two rectangular images and a state.

It is no policy, but which camera shows what, and each number of the state, reaches the output.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests import tiny_bundle as tiny
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.inputs_and_output import StateSpec
from trimvla.runtime.bundle.manifest import (
    ActionSpec,
    CameraSpec,
    ImagesSpec,
    Manifest,
    StageSpec,
    TensorSpec,
)

CAMERAS = ("front", "wrist")
HEIGHT = 6
WIDTH = 8
HORIZON = 4
DIM = 3
IMAGES = TensorSpec("images", "float32", (len(CAMERAS), HEIGHT, WIDTH, 3))
STATE = TensorSpec("state", "float32", (1, DIM))
ACTIONS = TensorSpec("actions", "float32", (1, HORIZON, DIM))
STATISTICS = {"mean": [0.0] * DIM, "std": [1.0] * DIM}


def manifest() -> Manifest:
    """Of the bundle, without its files."""
    return Manifest(
        name="promptless",
        created_utc="2026-01-01T00:00:00+00:00",
        trimvla_version="0",
        family="act",
        policy={"family": "act"},
        images=ImagesSpec(
            cameras=tuple(CameraSpec(name) for name in CAMERAS),
            size=HEIGHT,
            width=WIDTH,
            resize="bilinear-antialias",
            dtype="float32",
            scale=(0.0, 1.0),
        ),
        state=StateSpec(names=(), dim=DIM, padded=DIM, statistics="mean_std"),
        action=ActionSpec(
            HORIZON,
            DIM,
            30.0,
            ("absolute",) * DIM,
            "lab",
            normalization="mean_std",
            clip=False,
            binary_gripper=False,
            noise=False,
        ),
        stages={"action": StageSpec("action.onnx", (IMAGES, STATE), (ACTIONS,))},
        modes={"plain": ("action",)},
    )


def write_bundle(directory: Path) -> Path:
    """Write the bundle and return its directory."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(3)
    pixels = len(CAMERAS) * HEIGHT * WIDTH * 3
    rows = HORIZON * DIM
    weights = {
        "flat": np.array([1, pixels], np.int64),
        "look": (rng.normal(size=(pixels, rows)) / 16).astype(np.float32),
        "feel": rng.normal(size=(DIM, rows)).astype(np.float32),
        "chunk": np.array([1, HORIZON, DIM], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["images", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "look"], ["seen"]),
        helper.make_node("MatMul", ["state", "feel"], ["felt"]),
        helper.make_node("Add", ["seen", "felt"], ["sum"]),
        helper.make_node("Reshape", ["sum", "chunk"], ["actions"]),
    ]
    model = tiny._model("action", nodes, (IMAGES, STATE), (ACTIONS,), weights)
    onnx.save(model, directory / "action.onnx")
    table = {"lab": {"action": STATISTICS, "state": STATISTICS}}
    (directory / bundles.STATISTICS).write_text(json.dumps(table))
    bundles.write(directory, manifest())
    return directory
