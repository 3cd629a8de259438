"""A whole bundle of a few kilobytes with two cameras and a state: real graphs, no torch.

It is no policy, but which camera shows what, and each number of the state, reaches the output.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import helper

from tests import tiny_bundle as tiny
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.inputs_and_output import StateSpec
from trimvla.runtime.bundle.manifest import CameraSpec, ImagesSpec, StageSpec, TensorSpec

CAMERAS = ("camera1", "camera2")
STATE_NAMES = ("x", "y", "z", "yaw", "gripper.pos")
TOKENS = 4 * len(CAMERAS)
IMAGES = TensorSpec("images", "uint8", (len(CAMERAS), tiny.SIZE, tiny.SIZE, 3))
VISUAL = TensorSpec("visual", "float32", (1, TOKENS, tiny.WIDTH))
STATE = TensorSpec("state", "float32", (1, len(STATE_NAMES)))
STATES = {"mean": [0.1, 0.2, 0.3, 0.4, 0.5], "std": [0.5, 1.0, 1.5, 2.0, 0.5]}


def write_bundle(directory: Path, *, optional: bool = False, reads_state: bool = True) -> Path:
    """Write the bundle and return its directory.

    `optional`: it may do without its second camera.
    """
    tiny.write_bundle(directory)
    rng = np.random.default_rng(1)
    action_inputs = (tiny.COGNITION, *([STATE] if reads_state else []), tiny.NOISE)
    onnx.save(_vision(rng), directory / "vision.onnx")
    onnx.save(_language(rng), directory / "language.onnx")
    if reads_state:
        onnx.save(_action(rng, action_inputs), directory / "action.onnx")
    path = directory / bundles.STATISTICS
    table = json.loads(path.read_text())
    table["tiny"]["state"] = STATES
    path.write_text(json.dumps(table))
    dense = tiny.manifest()
    cameras = (CameraSpec(CAMERAS[0]), CameraSpec(CAMERAS[1], required=not optional))
    stages = {
        "vision": StageSpec("vision.onnx", (IMAGES,), (VISUAL,)),
        "language": StageSpec("language.onnx", (VISUAL, tiny.IDS, tiny.LAST), (tiny.COGNITION,)),
        "action": StageSpec("action.onnx", action_inputs, (tiny.ACTIONS,)),
    }
    dim = len(STATE_NAMES)
    state = StateSpec(names=STATE_NAMES, dim=dim, padded=dim, statistics="mean_std")
    changes = {
        "name": "two-cameras",
        "images": ImagesSpec(cameras=cameras, size=tiny.SIZE),
        "state": state if reads_state else None,
        "stages": stages,
    }
    bundles.write(directory, msgspec.structs.replace(dense, **changes))
    return directory


def _vision(rng: np.random.Generator) -> onnx.ModelProto:
    """Patches of each camera; every one has a weight of its own, so that the cameras' order
    counts.
    """
    weights = {
        "scale": np.float32(255),
        "shape": np.array([1, TOKENS, -1], np.int64),
        "mix": rng.normal(size=(tiny.SIZE * tiny.SIZE * 3 // 4, tiny.WIDTH)) / 8,
        "places": rng.normal(size=(1, TOKENS, 1)),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "scale"], ["unit"]),
        helper.make_node("Reshape", ["unit", "shape"], ["patches"]),
        helper.make_node("MatMul", ["patches", "mix"], ["mixed"]),
        helper.make_node("Mul", ["mixed", "places"], ["visual"]),
    ]
    return tiny._model("vision", nodes, (IMAGES,), (VISUAL,), weights)


def _language(rng: np.random.Generator) -> onnx.ModelProto:
    model = tiny._language(rng, ())
    inputs = tiny._values((VISUAL, tiny.IDS, tiny.LAST))
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def _action(rng: np.random.Generator, inputs: tuple[TensorSpec, ...]) -> onnx.ModelProto:
    """The dense one, with the state's part added."""
    rows = tiny.HORIZON * tiny.DIM
    weights = {
        "decode": rng.normal(size=(tiny.WIDTH, rows)) / 4,
        "read": rng.normal(size=(len(STATE_NAMES), rows)) / 16,
        "shape": np.array([1, tiny.HORIZON, tiny.DIM], np.int64),
        "tenth": np.float32(0.1),
    }
    nodes = [
        helper.make_node("MatMul", ["cognition", "decode"], ["seen"]),
        helper.make_node("MatMul", ["state", "read"], ["felt"]),
        helper.make_node("Add", ["seen", "felt"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["chunk"]),
        helper.make_node("Mul", ["noise", "tenth"], ["little"]),
        helper.make_node("Add", ["chunk", "little"], ["actions"]),
    ]
    return tiny._model("action", nodes, inputs, (tiny.ACTIONS,), weights)
