"""What every change of precision needs of a graph: weights as initializers where they are
multiplied, and tidying.

`to_onnx` stores weights in half behind a Cast, and torch's exporter leaves some behind a Transpose:
both are undone here. Knows onnx_ir; nothing of precisions and policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

PRODUCTS = ("MatMul", "Gemm", "Conv")


def unfold_weights(model: ir.Model) -> None:
    """Cast and Transpose of an initializer become an initializer; what is unused afterwards
    goes.
    """
    made: dict[tuple[ir.Value, str], ir.Value] = {}
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type in ("Cast", "Transpose") else None
        if source is None or not source.is_initializer():
            continue
        old = node.outputs[0]
        if node.op_type == "Cast":
            array = weights_of(source).astype(ir.DataType(node.attributes["to"].as_int()).numpy())
        else:
            array = np.ascontiguousarray(
                weights_of(source).transpose(node.attributes["perm"].as_ints())
            )
        key = (source, f"{array.dtype}{array.shape}")
        if key not in made:
            name = str(old.name)
            old.name = f"{old.name}.unfolded"
            made[key] = add_weight(model.graph, name, array)
        old.replace_all_uses_with(made[key])
    sweep(model.graph)


def weights_of(value: ir.Value) -> np.ndarray:
    """An initializer's numbers."""
    assert value.const_value is not None
    return value.const_value.numpy()


def add_weight(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def sweep(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing uses."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]


def weight_of(node: ir.Node) -> ir.Value | None:
    """The weight of a product of an activation with a weight; None for any other node."""
    if node.op_type not in PRODUCTS:
        return None
    left, right = node.inputs[:2]
    if left is None or right is None or left.is_initializer() or not right.is_initializer():
        return None
    return right


def after(graph: ir.Graph, starts: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """All nodes that something flows into from a node where `starts` holds, those nodes
    included.
    """
    reached: set[ir.Node] = set()
    for node in graph:  # in topological order
        if starts(node) or any(producer in reached for producer in producers(node)):
            reached.add(node)
    return reached


def producers(node: ir.Node) -> Iterable[ir.Node]:
    """The nodes that make its inputs."""
    return (
        made
        for value in node.inputs
        if value is not None and (made := value.producer()) is not None
    )


def consumers(node: ir.Node) -> Iterable[ir.Node]:
    """The nodes that read its outputs."""
    return (use.node for value in node.outputs for use in value.uses())
