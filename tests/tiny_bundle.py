"""A whole bundle of a few kilobytes, made with onnx.helper: real graphs, real tokenizer, no torch.

Its network is no policy, but every input reaches the output: pixels, each token up to the last,
noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import (
    ActionKind,
    ActionSpec,
    CameraSpec,
    ImagesSpec,
    Manifest,
    PromptSpec,
    StageSpec,
    TensorSpec,
)
from trimvla.runtime.bundle.plan import Plan, TokenPlan

SIZE = 8
PATCHES = 4
WIDTH = 6
HORIZON = 16
DIM = 7
BOS = 1
EOS = 2
PAD = 0
EMPTY = 3
TEXT = "What to do ? pick up stack the red blue green cube"
WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "<empty>",
    "<unk>",
    *TEXT.split(),
)
TEMPLATE = "What to do ? {instruction}"
BUCKETS = (12, 16)
KINDS = ("delta",) * 6 + ("gripper",)
ACTION_GUIDED = "action_guided"

IMAGE = TensorSpec("image", "uint8", (1, SIZE, SIZE, 3))
VISUAL = TensorSpec("visual", "float32", (1, PATCHES, WIDTH))
IDS = TensorSpec("input_ids", "int64", (1, "prompt"))
LAST = TensorSpec("last", "int64", (1,))
COGNITION = TensorSpec("cognition", "float32", (1, WIDTH))
NOISE = TensorSpec("noise", "float32", (1, HORIZON, DIM))
ACTIONS = TensorSpec("actions", "float32", (1, HORIZON, DIM))
KNOWN = TensorSpec("known", "float32", (1, HORIZON, DIM))
WEIGHT = TensorSpec("weight", "float32", (1, HORIZON, 1))
GUIDED_ACTIONS = TensorSpec("guided_actions", "float32", (1, HORIZON, DIM))

ELEMENT = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


def write_bundle(
    directory: Path,
    *,
    gain: float = 1.0,
    kept: tuple[int, ...] = (),
    guided: bool = False,
    control_hz: float = 5.0,
    kinds: tuple[ActionKind, ...] | None = None,
    loops: bool = False,
    dim: int = DIM,
    names: tuple[str, ...] = (),
    units: tuple[str, ...] = (),
) -> Path:
    """Write the bundle and return its directory.

    `gain` scales the network's output; infinity breaks it. With `kept` it says that these visual
    tokens were kept, as a trimmed bundle does; its plan also leaves out layers and sampler steps.
    `guided` adds the optional stage. `control_hz` and `kinds` are what its manifest says of its
    actions. With `loops` the first stage never comes to an end. `dim` numbers are an action, the
    last of them the gripper; `names` and `units` are of these.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    stages = {"vision": _vision(rng, loops), "language": _language(rng, kept)}
    decode = rng.normal(size=(WIDTH, HORIZON * dim)) / 4
    stages["action"] = _action(decode, gain)
    if guided:
        stages[ACTION_GUIDED] = _action(decode, gain, guided=True)
    for name, model in stages.items():
        onnx.save(model, directory / f"{name}.onnx")
    _tokenizer().save(str(directory / bundles.TOKENIZER))
    arm = dim - 1
    low = [-0.05] * arm + [0.0]
    high = [0.05] * arm + [1.0]
    mask = [True] * arm + [False]
    statistics = {"tiny": {"action": {"q01": low, "q99": high, "mask": mask}}}
    (directory / bundles.STATISTICS).write_text(json.dumps(statistics))
    made = trimmed(manifest(dim), kept) if kept else manifest(dim)
    action = msgspec.structs.replace(
        made.action, control_hz=control_hz, kinds=kinds or made.action.kinds
    )
    action = msgspec.structs.replace(action, names=names, units=units)
    made = msgspec.structs.replace(made, action=action)
    if guided:
        inputs = (COGNITION, chunk(NOISE, dim), chunk(KNOWN, dim), WEIGHT)
        stage = StageSpec(f"{ACTION_GUIDED}.onnx", inputs, (chunk(GUIDED_ACTIONS, dim),))
        stages = {**made.stages, ACTION_GUIDED: stage}
        made = msgspec.structs.replace(made, stages=stages, modes=bundles.modes_of(tuple(stages)))
    bundles.write(directory, made)
    return directory


def chunk(spec: TensorSpec, dim: int) -> TensorSpec:
    """The spec of a chunk of actions with so many numbers each."""
    return msgspec.structs.replace(spec, shape=(1, HORIZON, dim))


def manifest(dim: int = DIM) -> Manifest:
    """The manifest without its table of files."""
    return Manifest(
        name="tiny",
        created_utc="2026-01-01T00:00:00Z",
        trimvla_version="0.0.0",
        policy={},
        images=ImagesSpec(cameras=(CameraSpec("image"),), size=SIZE, tensor="image"),
        prompt=PromptSpec(TEMPLATE, BOS, (EMPTY, EOS), PAD, BUCKETS),
        action=ActionSpec(HORIZON, dim, 5.0, ("delta",) * (dim - 1) + ("gripper",), "tiny"),
        stages={
            "vision": StageSpec("vision.onnx", (IMAGE,), (VISUAL,)),
            "language": StageSpec("language.onnx", (VISUAL, IDS, LAST), (COGNITION,)),
            "action": StageSpec(
                "action.onnx", (COGNITION, chunk(NOISE, dim)), (chunk(ACTIONS, dim),)
            ),
        },
        modes={"plain": ("vision", "language", "action")},
    )


def trimmed(dense: Manifest, kept: tuple[int, ...]) -> Manifest:
    """The manifest with a plan."""
    plan = Plan(
        layers=(0, 2),
        tokens=TokenPlan(selector="uniform", keep=len(kept), after=1),
        recompute=(0, 3),
        steps=6,
    )
    stage = dense.stages["language"]
    stages = {
        **dense.stages,
        "language": StageSpec(stage.file, stage.inputs, (*stage.outputs, kept_spec(kept))),
    }
    policy = {"language": {"layers": 4}, "diffusion": {"inference_steps": 10}}
    return msgspec.structs.replace(dense, plan=plan, stages=stages, policy=policy)


def kept_spec(kept: tuple[int, ...]) -> TensorSpec:
    return TensorSpec("kept", "int64", (1, len(kept)))


def _vision(rng: np.random.Generator, loops: bool) -> onnx.ModelProto:
    weights = {
        "scale": np.float32(255),
        "shape": np.array([1, PATCHES, -1], np.int64),
        "mix": rng.normal(size=(SIZE * SIZE * 3 // PATCHES, WIDTH)) / 8,
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "scale"], ["unit"]),
        helper.make_node("Reshape", ["unit", "shape"], ["patches"]),
        helper.make_node("MatMul", ["patches", "mix"], ["product" if loops else "visual"]),
    ]
    if loops:
        weights |= {"times": np.int64(2**62), "on": np.bool_(True)}
        nodes.append(
            helper.make_node("Loop", ["times", "on", "product"], ["visual"], body=_endless())
        )
    return _model("vision", nodes, (IMAGE,), (VISUAL,), weights)


def _endless() -> onnx.GraphProto:
    """The body of a loop: what comes in goes out, and on."""
    shape = list(VISUAL.shape)
    inputs = [
        helper.make_tensor_value_info("count", TensorProto.INT64, []),
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("before", TensorProto.FLOAT, shape),
    ]
    outputs = [
        helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("after", TensorProto.FLOAT, shape),
    ]
    nodes = [
        helper.make_node("Identity", ["again"], ["goes_on"]),
        helper.make_node("Neg", ["before"], ["after"]),
    ]
    return helper.make_graph(nodes, "endless", inputs, outputs)


def _language(rng: np.random.Generator, kept: tuple[int, ...]) -> onnx.ModelProto:
    """tanh(mean of the visual tokens + sum of the embeddings up to the last token); `kept` is a
    constant.
    """
    weights = {
        "table": rng.normal(size=(len(WORDS), WIDTH)) / 4,
        "axis": np.int64(1),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("CumSum", ["embedded", "axis"], ["prefix"]),
        helper.make_node("Gather", ["prefix", "last"], ["at_last"], axis=1),
        helper.make_node("Squeeze", ["at_last", "axes"], ["text"]),
        helper.make_node("ReduceMean", ["visual", "axes"], ["picture"], keepdims=0),
        helper.make_node("Add", ["text", "picture"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["cognition"]),
    ]
    if not kept:
        return _model("language", nodes, (VISUAL, IDS, LAST), (COGNITION,), weights)
    nodes.append(helper.make_node("Identity", ["constant"], ["kept"]))
    weights["constant"] = np.array([kept], np.int64)
    return _model("language", nodes, (VISUAL, IDS, LAST), (COGNITION, kept_spec(kept)), weights)


def _action(decode: np.ndarray, gain: float, guided: bool = False) -> onnx.ModelProto:
    dim = decode.shape[1] // HORIZON
    noise = chunk(NOISE, dim)
    weights = {
        "decode": decode,
        "shape": np.array([1, HORIZON, dim], np.int64),
        "tenth": np.float32(0.1),
        "gain": np.float32(gain),
    }
    nodes = [
        helper.make_node("MatMul", ["cognition", "decode"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["chunk"]),
        helper.make_node("Mul", ["noise", "tenth"], ["little"]),
        helper.make_node("Add", ["chunk", "little"], ["sum"]),
        helper.make_node("Mul", ["sum", "gain"], ["actions"]),
    ]
    if not guided:
        return _model("action", nodes, (COGNITION, noise), (chunk(ACTIONS, dim),), weights)
    nodes += [
        helper.make_node("Sub", ["known", "actions"], ["change"]),
        helper.make_node("Mul", ["change", "weight"], ["pull"]),
        helper.make_node("Add", ["actions", "pull"], ["guided_actions"]),
    ]
    inputs = (COGNITION, noise, chunk(KNOWN, dim), WEIGHT)
    return _model("guided", nodes, inputs, (chunk(GUIDED_ACTIONS, dim),), weights)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    weights: dict[str, np.ndarray | np.generic],
) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(_narrow(np.asarray(value)), key) for key, value in weights.items()
    ]
    graph = helper.make_graph(nodes, name, _values(inputs), _values(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _narrow(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float64 else value


def _values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(spec.name, ELEMENT[spec.dtype], list(spec.shape))
        for spec in specs
    ]


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
