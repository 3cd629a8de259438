"""Products in 8-bit integers: which, and as which operators.

`Static`: explicit QuantizeLinear and DequantizeLinear around the product, symmetric on both sides,
one scale a tensor of activations (from calibration, see `ranges`) and one a column of weights;
biases stay as they are. TensorRT, OpenVINO and ONNX Runtime each fuse this into an int8 kernel.
`Dynamic`: scales found while running, as MatMulInteger; ONNX Runtime alone takes it. Everything
else of the graph stays in float32. Knows graphs; not where ranges come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trimvla.export.graphs.graph_edit import (
    add_weight,
    after,
    consumers,
    producers,
    sweep,
    unfold_weights,
    weight_of,
    weights_of,
)

LARGEST = 127
# a scale is rounded up to so many: frames that differ in the last bit give the same bytes
SCALE_BITS = 8
NORMS = ("LayerNormalization", "ReduceMean")  # the latter is RMSNorm's
Ranges = Mapping[str, float]
"""Largest absolute value of every activation that is multiplied, by tensor name."""


def targets(model: ir.Model) -> list[ir.Node]:
    """The products that become int8, in the graph's order.

    The first ones, which look at pixels (no norm lies before them), and the last one, which makes
    the output, stay. So does all of a sampler's attention: a step's error goes through all later
    steps, so only the MLPs are taken there.
    """
    normed = after(model.graph, lambda node: node.op_type in NORMS)
    found = [
        node
        for node in model.graph
        if node.op_type == "MatMul" and weight_of(node) and node in normed
    ]
    return list(filter(in_mlp, found)) if is_sampler(model) else found[:-1]


def is_sampler(model: ir.Model) -> bool:
    """Whether a stage begins with noise, and so runs the action head step by step."""
    return any(value.name == "noise" for value in model.graph.inputs)


def in_mlp(node: ir.Node) -> bool:
    """Whether a product stands directly before (its bias between) or after a GELU, or is one of
    the three of a gated MLP.
    """
    if any(before.op_type == "Gelu" or is_gate(before) for before in producers(node)):
        return True
    return any(map(leads_to_activation, read_by(node)))


def leads_to_activation(read: ir.Node) -> bool:
    """Whether what reads a product is, or is followed by, the activation or the gate of an MLP."""
    behind = list(consumers(read))
    if read.op_type == "Add":
        return any(node.op_type == "Gelu" for node in behind)
    gated = is_activation(read) and any(map(is_gate, behind))
    return read.op_type == "Gelu" or is_gate(read) or gated


def is_gate(node: ir.Node) -> bool:
    """Whether a node multiplies one product with a GELU or a SiLU of another."""
    if node.op_type != "Mul":
        return False
    made = list(producers(node))
    return any(is_product(before) for before in made) and any(map(is_activation, made))


def is_activation(node: ir.Node) -> bool:
    """Whether a node gives a GELU or a SiLU, which is x times its sigmoid."""
    silu = node.op_type == "Mul" and any(x.op_type == "Sigmoid" for x in producers(node))
    return node.op_type == "Gelu" or silu


def is_product(node: ir.Node) -> bool:
    """Whether a node is a product with a weight, or a part of one (`join_products`)."""
    if node.op_type == "Split":
        return any(map(is_product, producers(node)))
    return node.op_type == "MatMul" and weight_of(node) is not None


def read_by(node: ir.Node) -> Iterator[ir.Node]:
    """What reads a product, or the parts of it (`join_products`)."""
    for read in consumers(node):
        yield from consumers(read) if read.op_type == "Split" else (read,)


def multiplied(model: ir.Model) -> list[str]:
    """Names of the activations whose ranges `Static` needs; unfolds the weights."""
    unfold_weights(model)
    return list(
        dict.fromkeys(str(node.inputs[0].name) for node in targets(model) if node.inputs[0])
    )


def quantise(model: ir.Model, ranges: Ranges | None) -> None:
    """Make the stage's products int8, in place: static with ranges, dynamic without."""
    unfold_weights(model)
    join_products(model.graph, targets(model))
    replace = Dynamic(model.graph) if ranges is None else Static(model.graph, ranges)
    for node in targets(model):
        replace(node)
    sweep(model.graph)


def join_products(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Products of one activation with several weights become one product and a Split.

    Each column keeps its scale, so nothing is lost; ONNX Runtime fuses a dequantised input of one
    product only.
    """
    groups: dict[ir.Value | None, list[ir.Node]] = {}
    for node in nodes:
        groups.setdefault(node.inputs[0], []).append(node)
    for x, group in groups.items():
        weights = [weight for node in group if (weight := weight_of(node)) is not None]
        if x is None or len(group) == 1:
            continue
        name = f"{weights[0].name}.joined"
        arrays = [weights_of(weight) for weight in weights]
        joined = graph.initializers.get(name) or add_weight(
            graph, name, np.concatenate(arrays, axis=1)
        )
        product = append(
            graph, group[0], "MatMul", [x, joined], f"{group[0].outputs[0].name}.joined"
        )
        sizes = add_weight(
            graph, f"{product.name}.sizes", np.array([array.shape[1] for array in arrays])
        )
        split = ir.node("Split", [product, sizes], {"axis": -1}, num_outputs=len(group))
        split.name = f"{product.name}.Split"
        graph.insert_before(group[0], split)
        for node, part in zip(group, split.outputs, strict=True):
            part.name = f"{node.outputs[0].name}.part"
            node.outputs[0].replace_all_uses_with(part)
            graph.remove(node, safe=True)


class Static:
    """Puts a quantised and dequantised input and weight in place of a product's own."""

    def __init__(self, graph: ir.Graph, ranges: Ranges) -> None:
        """`ranges` must have every activation of `multiplied`."""
        self.graph = graph
        self.ranges = ranges
        self.quantised: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self.weights: dict[ir.Value, tuple[ir.Value, ...]] = {}

    def __call__(self, node: ir.Node) -> None:
        """A DequantizeLinear of its own for every product: ONNX Runtime fuses no shared ones."""
        x, weight = node.inputs
        assert x is not None and weight is not None and x.name is not None
        if x not in self.quantised:
            scale = round_up(max(self.ranges[x.name], 1e-6) / LARGEST)
            made = add_weight(self.graph, f"{x.name}.scale", np.array(scale, np.float32))
            zero = add_weight(self.graph, f"{x.name}.zero", np.array(0, np.int8))
            q = append(self.graph, node, "QuantizeLinear", [x, made, zero], f"{x.name}.int8")
            self.quantised[x] = (q, made, zero)
        if weight not in self.weights:
            self.weights[weight] = stored_weight(self.graph, weight)
        name = node.outputs[0].name
        data = append(self.graph, node, "DequantizeLinear", self.quantised[x], f"{name}.data")
        matrix = append(
            self.graph, node, "DequantizeLinear", self.weights[weight], f"{name}.weight", axis=1
        )
        node.replace_input_with(0, data)
        node.replace_input_with(1, matrix)
        lift_bias(self.graph, node)


class Dynamic:
    """Puts an integer product, and what makes it a float again, in place of a product."""

    def __init__(self, graph: ir.Graph) -> None:
        """Of one graph."""
        self.graph = graph
        self.quantised: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self.weights: dict[ir.Value, tuple[ir.Value, ...]] = {}

    def __call__(self, node: ir.Node) -> None:
        """The chain of operators that ONNX Runtime knows as one."""
        x, weight = node.inputs
        assert x is not None and weight is not None
        if x not in self.quantised:
            made = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            for value, what in zip(made.outputs, ("uint8", "scale", "zero"), strict=True):
                value.name = f"{x.name}.{what}"
            self.graph.insert_before(node, made)
            self.quantised[x] = tuple(made.outputs)
        if weight not in self.weights:
            self.weights[weight] = stored_weight(self.graph, weight)
        (q, scale, zero) = self.quantised[x]
        (stored, by, none) = self.weights[weight]
        name = node.outputs[0].name
        whole = append(self.graph, node, "MatMulInteger", [q, stored, zero, none], f"{name}.int32")
        real = append(self.graph, node, "Cast", [whole], f"{name}.float", to=ir.DataType.FLOAT)
        factor = append(self.graph, node, "Mul", [scale, by], f"{name}.scale")
        node.outputs[0].replace_all_uses_with(
            append(self.graph, node, "Mul", [real, factor], f"{name}.product")
        )


def append(
    graph: ir.Graph,
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value],
    name: str,
    **attributes: int,
) -> ir.Value:
    """A new node before another; its output."""
    made = ir.node(op, list(inputs), attributes)
    made.name = f"{name}.{op}"
    made.outputs[0].name = name
    graph.insert_before(before, made)
    return made.outputs[0]


def stored_weight(graph: ir.Graph, weight: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """float[k, n] -> int8[k, n], float32[n] scales and int8[n] zeros."""
    whole, scale = columns(weights_of(weight))
    parts = (("int8", whole), ("scale", scale), ("zero", np.zeros(scale.shape, np.int8)))
    stored, by, zero = (add_weight(graph, f"{weight.name}.{what}", array) for what, array in parts)
    return stored, by, zero


def columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float[k, n] -> int8[k, n] and the scale of every column, float32[n]."""
    scale = (np.maximum(np.abs(weight).max(axis=0), 1e-12) / LARGEST).astype(np.float32)
    return np.rint(weight / scale).clip(-LARGEST, LARGEST).astype(np.int8), scale


def lift_bias(graph: ir.Graph, node: ir.Node) -> None:
    """A bias [n] behind the product becomes [1, 1, n]: with the other ONNX Runtime makes a Gemm,
    which stays float.
    """
    for read in consumers(node):
        for index, value in enumerate(read.inputs if read.op_type == "Add" else ()):
            if value is not None and value.is_initializer() and len(weights_of(value).shape) == 1:
                name = f"{value.name}.lifted"
                lifted = graph.initializers.get(name) or add_weight(
                    graph, name, weights_of(value)[None, None]
                )
                read.replace_input_with(index, lifted)


def round_up(scale: float) -> float:
    """The next number of `SCALE_BITS` bits."""
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(math.ceil(mantissa * 2**SCALE_BITS), exponent - SCALE_BITS)
