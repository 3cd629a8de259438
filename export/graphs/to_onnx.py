"""One stage -> one checked ONNX file, the same bytes every time.

The graph comes from torch's exporter; then everything that reveals the machine that made it (stack
traces, module scopes) is removed, and weights that half precision holds exactly are stored in half
behind a Cast, which every backend folds while loading. Files beyond protobuf's limit keep their
weights beside the graph; a stage with the weights of another one reads them from that one's file.
Between machines, constants that the exporter folds in floating point may differ in the last bits:
2 of the shipped tabletop's 32 rotary frequencies do (tests/test_shipped_stages.py). Knows nothing
of bundles.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from trimvla.export.graphs.chained import chain_graph
from trimvla.export.graphs.exporter import OPSET, quiet_exporter
from trimvla.export.graphs.stages import prompt_lengths
from trimvla.policies.chained import Chained
from trimvla.policies.families import family_of
from trimvla.policies.stage import PROMPT_AXIS, Stage
from trimvla.runtime.bundle.manifest import TensorSpec, sha256_of

IR_VERSION = 10  # what ONNX Runtime 1.18 and TensorRT 10.3 read
INLINE_LIMIT = 1 << 30  # bytes of weights; protobuf itself ends at 2 GiB
SHARED_FROM = 512  # bytes; below, a reference costs more than it saves
HALF_FROM = 1024  # elements; below, a Cast costs more than it saves


def export_stage(policy: nn.Module, stage: Stage, path: Path) -> list[Path]:
    """Write `path` (and `path` + ".data" for large weights), checked; returns the files written."""
    model = build_graph(policy, stage)
    strip(model)
    store_in_half(model)
    if stage.weights_of is not None:
        share_weights(model, path, path.with_name(f"{stage.weights_of}.onnx"))
    weights = sum(tensor.nbytes for tensor in own_weights(model))
    beside = f"{path.name}.data" if weights > INLINE_LIMIT else None
    ir.save(model, path, external_data=beside)
    onnx.checker.check_model(str(path), full_check=True)
    return [path] if beside is None else [path, path.with_name(beside)]


def own_weights(model: ir.Model) -> list[ir.TensorProtocol]:
    """Those that are not in another file."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [
        tensor
        for tensor in tensors
        if tensor is not None and not isinstance(tensor, ir.ExternalTensor)
    ]


def share_weights(model: ir.Model, path: Path, owner: Path) -> None:
    """Let every weight that lies in another stage's file be read from there: ONNX's external data,
    at its offset.

    The owner's sha256 is written into the graph, so that what is built from it is of these weights
    and no others.
    """
    for file in (owner, owner.with_name(f"{owner.name}.data")):
        if not file.exists():
            continue
        model.metadata_props[f"sha256 of {file.name}"] = sha256_of(file)
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            _point_into(model, content, file.name, path.parent)


def _point_into(model: ir.Model, content: mmap.mmap, location: str, directory: Path) -> None:
    """Weights follow each other in much the same order: the search goes on where the last one was
    found.

    One place is of one length: rows 0 to 134 are also the beginning of rows 0 to 151, and TensorRT
    refuses a network with weights of two lengths at one address. The second stays in the graph.
    """
    place = 0
    taken: dict[int, int] = {}  # place -> bytes
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes < SHARED_FROM:
            continue
        raw = tensor.tobytes()
        found = content.find(raw, place)
        place = content.find(raw) if found < 0 else found
        if place >= 0 and taken.setdefault(place, len(raw)) == len(raw):
            shape = ir.Shape(tensor.numpy().shape)
            outside = ir.ExternalTensor(
                location, place, len(raw), tensor.dtype, shape=shape, name=name, base_dir=directory
            )
            value.const_value = outside
        place = max(place, 0)


def build_graph(policy: nn.Module, stage: Stage) -> ir.Model:
    """Trace the stage in torch and convert it, with symbolic axes as its specs name them."""
    module = stage.module(policy)
    if isinstance(module, Chained):
        return chain_graph(module, blanks(policy, stage))
    return trace(policy, stage, module).model


def blanks(policy: nn.Module, stage: Stage) -> tuple[torch.Tensor, ...]:
    """Zeros of the types and shapes of the stage's inputs, for the longest prompt."""
    cfg: Any = policy.cfg
    plan: Any = policy.plan
    tensors = family_of(cfg).tensor_specs(cfg, plan)
    longest = max(prompt_lengths(cfg), default=0)
    return tuple(blank(tensors[name], longest) for name in stage.inputs)


def trace(
    policy: nn.Module, stage: Stage, module: nn.Module, optimize: bool = True
) -> torch.onnx.ONNXProgram:
    """The program of a stage's module, simplified or as it was traced."""
    cfg: Any = policy.cfg
    plan: Any = policy.plan
    longest = max(prompt_lengths(cfg), default=3)  # without a prompt no axis is symbolic
    prompt = torch.export.Dim(PROMPT_AXIS, min=2, max=longest)
    tensors = family_of(cfg).tensor_specs(cfg, plan)
    specs = [tensors[name] for name in stage.inputs]
    with quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            tuple(blank(spec, longest) for spec in specs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            dynamic_shapes=tuple(
                {i: prompt for i, axis in enumerate(s.shape) if axis == PROMPT_AXIS} for s in specs
            ),
            verbose=False,
            optimize=optimize,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no program for stage '{stage.name}'")
    return program


def blank(spec: TensorSpec, prompt: int) -> torch.Tensor:
    """Zeros of the spec's dtype and shape: tracing looks at nothing else."""
    shape = [prompt if axis == PROMPT_AXIS else int(axis) for axis in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def strip(model: ir.Model) -> None:
    """Remove what differs between machines, and fix the versions."""
    model.ir_version = IR_VERSION
    model.producer_name = "trimvla"
    model.producer_version = None
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def store_in_half(model: ir.Model) -> None:
    """Store float32 weights as float16 where that loses nothing: initializer -> Cast -> its old
    uses.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        half = _exact_half(value)
        if half is None:
            continue
        stored = ir.Value(name=f"{name}.f16", const_value=ir.tensor(half, name=f"{name}.f16"))
        stored.shape = value.shape
        stored.type = ir.TensorType(ir.DataType.FLOAT16)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        cast.outputs[0].shape = value.shape
        cast.outputs[0].type = value.type
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        cast.name = f"{name}.cast"
        cast.outputs[0].name = name
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def _exact_half(value: ir.Value) -> np.ndarray | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < HALF_FROM:
        return None
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None
