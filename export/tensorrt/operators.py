"""What TensorRT 10.3 (JetPack 6, the oldest on a robot) takes of ONNX, as a table, and a check of a
graph against it.

For machines that have only a newer parser, or none. Source: docs/operators.md of
onnx/onnx-tensorrt. Its text for 10.3 was not at hand, so the table is bounded from both sides:
operators that stand in it for 8.5 (commit 6d0ab7be) and for 10.15, with the types of 10.15;
bfloat16 and int64 came with 9.0, LayerNormalization with 8.6 (docs/Changelog.md). One row is from
elsewhere: Gelu, new in opset 20; 10.0 takes opsets 9 to 20, and NVIDIA's list of what 10.x added
has its activation. Knows which operators parse, not how fast they are. Needs onnx, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from trimvla.runtime.errors import BundleError

OPSETS = range(9, 21)
TOPK_LIMIT = 3840  # NVIDIA's operator reference for TopK, and its builder's error for a larger K

FLOATS = ("float32", "float16", "bfloat16")
INTEGERS = ("int32", "int64")
NUMBERS = FLOATS + INTEGERS
ANY = (*NUMBERS, "bool")

# operator -> element types of its data (the first input, unless `DATA_AT` or `TYPED_BY_OUTPUT` has
# otherwise)
OPERATORS: dict[str, tuple[str, ...]] = {
    "Abs": NUMBERS,
    "Add": NUMBERS,
    "And": ("bool",),
    "Cast": (*ANY, "uint8"),
    "Clip": FLOATS,
    "Concat": ANY,
    "Constant": ANY,
    "ConstantOfShape": ANY,
    "Conv": FLOATS,
    "Cos": FLOATS,
    "CumSum": FLOATS,
    "DequantizeLinear": ("int8",),
    "Div": NUMBERS,
    "Equal": NUMBERS,
    "Erf": FLOATS,
    "Exp": FLOATS,
    "Expand": ANY,
    "Flatten": ANY,
    "Gather": ANY,
    "GatherElements": ANY,
    "GatherND": ANY,
    "Gelu": FLOATS,
    "Gemm": FLOATS,
    "Greater": NUMBERS,
    "GreaterOrEqual": NUMBERS,
    "Identity": ANY,
    "LayerNormalization": FLOATS,
    "Less": NUMBERS,
    "LessOrEqual": NUMBERS,
    "Log": FLOATS,
    "MatMul": FLOATS,
    "Max": NUMBERS,
    "MaxPool": FLOATS,
    "Min": NUMBERS,
    "Mul": NUMBERS,
    "Neg": NUMBERS,
    "Not": ("bool",),
    "Or": ("bool",),
    "Pad": NUMBERS,
    "Pow": NUMBERS,
    "QuantizeLinear": FLOATS,
    "Range": NUMBERS,
    "Reciprocal": FLOATS,
    "ReduceL2": NUMBERS,
    "ReduceMax": NUMBERS,
    "ReduceMean": NUMBERS,
    "ReduceMin": NUMBERS,
    "ReduceSum": NUMBERS,
    "Relu": NUMBERS,
    "Reshape": ANY,
    "ScatterElements": NUMBERS,
    "Shape": ANY,
    "Sigmoid": FLOATS,
    "Sin": FLOATS,
    "Slice": ANY,
    "Softmax": FLOATS,
    "Split": ANY,
    "Sqrt": FLOATS,
    "Squeeze": ANY,
    "Sub": NUMBERS,
    "Tanh": FLOATS,
    "Tile": ANY,
    "TopK": NUMBERS,
    "Transpose": ANY,
    "Trilu": ANY,
    "Unsqueeze": ANY,
    "Where": ANY,
}
DATA_AT = {"Where": 1}
TYPED_BY_OUTPUT = ("Constant", "ConstantOfShape")
# TensorRT takes these; a CUDA graph does not, and weights inside branches are held twice.
CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Graph:
    """What the rules look at: element types and constants by tensor name, and what crosses the
    graph's border.
    """

    types: Mapping[str, str]
    constants: Mapping[str, TensorProto]
    border: frozenset[str]


def check_operators(path: Path) -> None:
    """Check an ONNX file; its weights are not read.

    Raises:
        BundleError: the graph has something that TensorRT 10.3 does not take; names each node and
            the reason.
    """
    problems = list(problems_of(onnx.load(str(path), load_external_data=False)))
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise BundleError(f"{path}: not for TensorRT 10.3: {'; '.join(problems[:5])}{more}")


def problems_of(model: onnx.ModelProto) -> Iterator[str]:
    """Everything in a model that TensorRT 10.3 does not take, one sentence each."""
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"expected operators of ONNX alone, got the domain '{opset.domain}'"
        elif opset.version not in OPSETS:
            yield f"expected an opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset.version}"
    if model.functions:
        yield f"expected no local functions, got {[function.name for function in model.functions]}"
    graph = describe(model)
    for node in model.graph.node:
        yield from (
            f"node '{node.name}' ({node.op_type}): {problem}"
            for problem in node_problems(node, graph)
        )


def describe(model: onnx.ModelProto) -> Graph:
    """Types of all tensors, inferred where the file does not give them."""
    graph = model.graph
    typed = {value.name for value in (*graph.value_info, *graph.output)}
    if any(name and name not in typed for node in graph.node for name in node.output):
        graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: type_name(value.type.tensor_type.elem_type) for value in values}
    types |= {tensor.name: type_name(tensor.data_type) for tensor in graph.initializer}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"
    }
    return Graph(types, constants, frozenset(value.name for value in (*graph.input, *graph.output)))


def type_name(element: int) -> str:
    """ONNX's number of an element type by our name."""
    name = TensorProto.DataType.Name(element).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def node_problems(node: NodeProto, graph: Graph) -> Iterator[str]:
    """What is wrong with one node."""
    if node.op_type in CONTROL_FLOW:
        yield "control flow; a stage is one static graph"
        return
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        yield "not in the table of operators"
        return
    yield from type_problems(node, graph)
    if node.op_type == "TopK":
        yield from topk_problems(node, graph)
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield "only the first output is supported"
    if (
        node.op_type.startswith("Reduce")
        and len(node.input) > 1
        and node.input[1] not in graph.constants
    ):
        yield "expected constant axes, got computed ones"


def type_problems(node: NodeProto, graph: Graph) -> Iterator[str]:
    """Element types: of the operator's data, and 8-bit pixels only at the border."""
    by_output = node.op_type in TYPED_BY_OUTPUT
    names = node.output[:1] if by_output else node.input[DATA_AT.get(node.op_type, 0) :][:1]
    for name in names:
        got = graph.types.get(name, "an unknown type")
        allowed = OPERATORS[node.op_type]
        if got not in allowed:
            yield f"expected {', '.join(allowed)}, got {got} for '{name}'"
        elif got == "uint8" and name not in graph.border:
            yield f"uint8 is for inputs and outputs of the graph only, got it for '{name}'"


def topk_problems(node: NodeProto, graph: Graph) -> Iterator[str]:
    """TopK: a constant K within the limit, sorted."""
    k = graph.constants.get(node.input[1])
    if k is None:
        yield "expected a constant K, got a computed one"
    elif (count := int(np.ravel(numpy_helper.to_array(k))[0])) > TOPK_LIMIT:
        yield f"expected K up to {TOPK_LIMIT}, got {count}"
    if any(attribute.name == "sorted" and not attribute.i for attribute in node.attribute):
        yield "expected sorted = 1, got 0"
