"""A float32 graph with its products in float16 or bfloat16, casts in the graph: nothing is left to
a builder's flags.

Products with a weight and those of attention compute in half, and tables of words are stored in it.
Sums of two activations, softmax,
norms, cosines and everything else that is not in `FOLLOWS` stay in float32: so do the residual
stream, rotary positions, guidance and the sampler's state. What `FOLLOWS` merely passes on is in
whatever its input is in. Knows graphs; no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from trimvla.export.graphs.graph_edit import (
    PRODUCTS,
    add_weight,
    consumers,
    producers,
    sweep,
    unfold_weights,
    weight_of,
    weights_of,
)

HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
# a weight with a shorter side stays: actions have 7 numbers and pixels 3, and such a product costs
# little
SMALLEST = 16
FOLLOWS = frozenset(
    (
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Gelu",
        "Identity",
        "MaxPool",
        "Mul",
        "Neg",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Split",
        "Squeeze",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
REACH = 4  # nodes between a product of attention and its softmax: scale, mask, reshape


Narrow = Callable[[ir.Value, str, ir.DataType], "ir.Value | None"]
"""(a weight, a name, a type) -> the same weight in that type; None where it is not known."""


def halve(model: ir.Model, dtype: str) -> None:
    """Rewrite the graph in place; `dtype` is a key of `HALVES`."""
    unfold_weights(model)
    halve_unfolded(model.graph, dtype, lambda value, name, half: None)


def halve_unfolded(graph: ir.Graph, dtype: str, narrow: Narrow) -> None:
    """The same for a graph whose weights are initializers already; those that `narrow` knows need
    no values.
    """
    Halving(graph, HALVES[dtype], narrow).run()
    sweep(graph)


class Halving:
    """One pass over a graph: decides for every node, and puts casts where the decision changes."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, narrow: Narrow) -> None:
        """Of one graph."""
        self.graph = graph
        self.half = half
        self.narrow = narrow
        self.border = set(graph.outputs)
        self.halved: set[ir.Value] = set()  # activations that are in half now
        # (value, in half) -> the same in the other type
        self.made: dict[tuple[ir.Value, bool], ir.Value] = {}

    def run(self) -> None:
        """Every node once, in topological order, then the border."""
        for node in list(self.graph):
            if any(is_float(value) for value in node.inputs):
                self.convert(node, in_half=self.wants_half(node))
        for index, value in enumerate(list(self.graph.outputs)):
            if value in self.halved:
                self.restore_output(index, value)

    def wants_half(self, node: ir.Node) -> bool:
        """Whether a node computes in half."""
        if node.op_type in PRODUCTS:
            weight = weight_of(node)
            return in_attention(node) if weight is None else min(sides_of(node, weight)) >= SMALLEST
        if is_table(node):
            return True
        activations = [
            value
            for value in node.inputs
            if value is not None and is_float(value) and not value.is_initializer()
        ]
        follows = node.op_type in FOLLOWS or (node.op_type == "Add" and len(activations) == 1)
        return follows and bool(activations) and all(value in self.halved for value in activations)

    def convert(self, node: ir.Node, in_half: bool) -> None:
        """Give a node its inputs in the type that it computes in."""
        for index, value in enumerate(node.inputs):
            if value is not None and is_float(value) and (in_half or value in self.halved):
                node.replace_input_with(index, self.typed(value, node, in_half))
        if in_half:
            for value in node.outputs:
                value.type = ir.TensorType(self.half)
                self.halved.add(value)

    def typed(self, value: ir.Value, node: ir.Node, in_half: bool) -> ir.Value:
        """The value in half or in float32, made where it first is needed."""
        if (value in self.halved) == in_half:
            return value
        key = (value, in_half)
        if key not in self.made:
            name = f"{value.name}.{'half' if in_half else 'float'}"
            if value.is_initializer():
                known = self.narrow(value, name, self.half)
                self.made[key] = known or add_weight(
                    self.graph, name, weights_of(value).astype(self.half.numpy())
                )
            else:
                self.made[key] = self.cast(
                    value, node, self.half if in_half else ir.DataType.FLOAT, name
                )
        return self.made[key]

    def cast(self, value: ir.Value, before: ir.Node, to: ir.DataType, name: str) -> ir.Value:
        """A Cast in front of a node."""
        made = ir.node("Cast", [value], {"to": to})
        made.name = f"{name}.Cast"
        out = made.outputs[0]
        out.name = name
        out.shape = value.shape
        out.type = ir.TensorType(to)
        self.graph.insert_before(before, made)
        return out

    def restore_output(self, index: int, value: ir.Value) -> None:
        """The border keeps its name and its type."""
        name = value.name
        value.name = f"{value.name}.half"
        made = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        made.name = f"{name}.Cast"
        out = made.outputs[0]
        out.name = name
        out.shape = value.shape
        out.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(made)
        self.graph.outputs[index] = out


def is_float(value: ir.Value | None) -> bool:
    """Whether it held float32 before anything was converted, or holds a half now."""
    return value is not None and value.dtype in (ir.DataType.FLOAT, *HALVES.values())


def sides_of(node: ir.Node, weight: ir.Value) -> tuple[int, ...]:
    """What a product's weight has for sides: of a convolution its channels, out and in (a group's);
    its kernel is as small as it is.
    """
    assert weight.const_value is not None
    shape = tuple(weight.const_value.shape.numpy())
    return shape[:2] if node.op_type == "Conv" else shape


def is_table(node: ir.Node) -> bool:
    """Whether rows of a matrix are looked up by their numbers: a table of words, which is as large
    as many a product's weight.
    """
    table = node.inputs[0] if node.op_type == "Gather" else None
    if table is None or not table.is_initializer() or table.const_value is None:
        return False
    shape = tuple(table.const_value.shape.numpy())
    return is_float(table) and len(shape) == 2 and min(shape) >= SMALLEST


def in_attention(node: ir.Node) -> bool:
    """Whether a product of two activations makes the scores of a softmax, or takes its
    probabilities.
    """
    return any(
        near.op_type == "Softmax" for walk in (producers, consumers) for near in reach(node, walk)
    )


def reach(node: ir.Node, walk: Callable[[ir.Node], Iterable[ir.Node]]) -> Iterator[ir.Node]:
    """Nodes within `REACH` steps in one direction, not past a product."""
    edge = [node]
    for _ in range(REACH):
        edge = [near for each in edge for near in walk(each) if near.op_type not in PRODUCTS]
        yield from edge
