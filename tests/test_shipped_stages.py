"""The shipped bundles' stages, exported again by the code of now, are the files that were shipped.

Byte by byte, but for the language stage: another numbering of the intermediate values, and rotary
frequencies whose last bits depend on the machine that folds them. There the nodes, their
attributes, what they are wired to and every weight are compared bit by bit, and constants that were
folded in floating point to the last places.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from trimvla.export.bundle import export_to
from trimvla.export.graphs.stages import stages_of
from trimvla.export.graphs.to_onnx import HALF_FROM
from trimvla.policies import load_policy
from trimvla.policies.families import family_of
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import sha256_of

ULPS = (
    2  # seen in 2 of the 32 rotary frequencies; the weights and everything else had the same bits
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("tabletop", "vision"),
        ("tabletop-trimmed", "language"),
        ("tabletop-trimmed", "action"),
    ],
)
def test_a_shipped_stage_is_exported_again(
    name: str, stage: str, tabletop_bundle: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    shipped = tabletop_bundle.parent / name
    manifest = bundles.load(shipped)
    policy = load_policy(tabletop_bundle.with_suffix(".safetensors"))
    trimmed = family_of(policy.cfg).trim(policy, manifest.plan)
    made = next(each for each in stages_of(trimmed) if each.name == stage)
    assert export_to(trimmed, made, tmp_path) == manifest.stages[stage]
    ours = tmp_path / f"{stage}.onnx"
    theirs = shipped / f"{stage}.onnx"
    if stage != "language":
        assert sha256_of(ours) == sha256_of(theirs)
    elif sha256_of(ours) != sha256_of(theirs):
        assert differences(onnx.load(ours), onnx.load(theirs)) == []


def test_what_is_another_graph_is_found(tabletop_bundle: Path) -> None:
    shipped = onnx.load(tabletop_bundle / "vision.onnx")
    assert differences(renamed(shipped), shipped) == []
    assert any("op_type" in each for each in differences(with_other_node(shipped), shipped))
    assert any("wired" in each for each in differences(with_swapped_inputs(shipped), shipped))
    assert any("weight" in each for each in differences(with_other_weight(shipped), shipped))


def differences(ours: onnx.ModelProto, theirs: onnx.ModelProto) -> list[str]:
    """What differs between two models but for the names of values inside the graph."""
    found = [
        field
        for field in ("ir_version", "producer_name", "opset_import")
        if getattr(ours, field) != getattr(theirs, field)
    ]
    graphs = (ours.graph, theirs.graph)
    found += [
        field
        for field in ("input", "output")
        if _texts(graphs[0], field) != _texts(graphs[1], field)
    ]
    if len(graphs[0].node) != len(graphs[1].node):
        return [*found, f"nodes: {len(graphs[0].node)} and {len(graphs[1].node)}"]
    names = {value.name: value.name for value in graphs[0].input}
    tensors = [{each.name: each for each in graph.initializer} for graph in graphs]
    for mine, other in zip(graphs[0].node, graphs[1].node, strict=True):
        found += _node_differences(mine, other)
        for ours_in, theirs_in in zip(mine.input, other.input, strict=False):
            if ours_in in tensors[0] and theirs_in in tensors[1] and ours_in not in names:
                found += _constant_differences(tensors[0][ours_in], tensors[1][theirs_in])
                names[ours_in] = theirs_in
            if names.get(ours_in, "") != theirs_in:
                found.append(f"wired: {mine.name} to {ours_in}, {other.name} to {theirs_in}")
        names |= dict(zip(mine.output, other.output, strict=False))
    if len(set(names.values())) != len(names):
        found.append("wired: two values of one graph are one of the other")
    unused = [
        set(each) - used
        for each, used in zip(tensors, (set(names), set(names.values())), strict=True)
    ]
    return found + [f"weight of one graph alone: {sorted(each)}" for each in unused if each]


def _texts(graph: onnx.GraphProto, field: str) -> list[bytes]:
    return [value.SerializeToString() for value in getattr(graph, field)]


def _node_differences(ours: onnx.NodeProto, theirs: onnx.NodeProto) -> list[str]:
    wrong = [f for f in ("op_type", "domain") if getattr(ours, f) != getattr(theirs, f)]
    if len(ours.input) != len(theirs.input) or len(ours.output) != len(theirs.output):
        wrong.append("wired: counts")
    attributes = [
        {a.name: a.SerializeToString() for a in node.attribute} for node in (ours, theirs)
    ]
    if attributes[0] != attributes[1]:
        wrong.append("attributes")
    return [f"{each} of {ours.name}, {theirs.name}" for each in wrong]


def _constant_differences(ours: onnx.TensorProto, theirs: onnx.TensorProto) -> list[str]:
    """Bits of weights; the last places of small float32 constants."""
    mine = numpy_helper.to_array(ours)
    other = numpy_helper.to_array(theirs)
    if mine.dtype != other.dtype or mine.shape != other.shape:
        return [f"weight {ours.name}: {mine.dtype}{mine.shape} and {other.dtype}{other.shape}"]
    if mine.tobytes() == other.tobytes():
        return []
    if mine.dtype == np.float32 and mine.size < HALF_FROM:
        far = np.abs(mine.view(np.int32).astype(np.int64) - other.view(np.int32)).max()
        if far <= ULPS:
            return []
    return [f"weight {ours.name}: other numbers than {theirs.name}"]


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, its intermediate values and weights named otherwise."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    kept = {value.name for value in (*made.graph.input, *made.graph.output)}
    for node in made.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else f"other_{name}" for name in names]
    for tensor in made.graph.initializer:
        tensor.name = f"other_{tensor.name}"
    return made


def with_other_node(model: onnx.ModelProto) -> onnx.ModelProto:
    """A Mul for the first Add."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    next(node for node in made.graph.node if node.op_type == "Add").op_type = "Mul"
    return made


def with_swapped_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The inputs of the last Add of two computed values, exchanged."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    weights = {tensor.name for tensor in made.graph.initializer}
    adds = [n for n in made.graph.node if n.op_type == "Add" and not weights & set(n.input)]
    adds[-1].input[:] = reversed(adds[-1].input)
    return made


def with_other_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    """One bit of the first half-precision weight, flipped."""
    made = onnx.ModelProto.FromString(model.SerializeToString())
    half = onnx.TensorProto.FLOAT16
    tensor = next(each for each in made.graph.initializer if each.data_type == half)
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    return made
