"""A chain of pieces -> one graph: pieces that are alike are traced once, and repeated with their
own weights and constants.

Weights come out as inputs of the graph, each once, so that whoever has their values, or only their
places in a file, can put them in. All shapes are fixed. Knows no policy and no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trimvla.export.graphs.exporter import OPSET, quiet_exporter
from trimvla.policies.chained import Chained, Piece

CONSTANT = "constant"


@dataclass(frozen=True)
class Template:
    """The graph of a piece: its inputs, then the weights that it reads, by their names in the
    piece.
    """

    graph: ir.Graph
    weights: Mapping[str, ir.Value]


TEMPLATES_KEPT = 64
_TEMPLATES: dict[str, Template] = {}  # plans of one policy have most of their pieces in common


@dataclass
class Traced:
    """A chain's graph; `weights` are inputs of it, with their names among the chain's
    parameters.
    """

    model: ir.Model
    weights: dict[ir.Value, str]


def chain_graph(chain: Chained, arguments: Sequence[Tensor]) -> ir.Model:
    """The graph with the chain's own weights; what it reads transposed is stored so."""
    traced = trace_chain(chain, arguments)
    graph = traced.model.graph
    parameters = dict(chain.named_parameters())
    for value, name in traced.weights.items():
        graph.inputs.remove(value)
        array = parameters[name].detach().cpu().numpy()
        turned = transposed(graph, value)
        for made, numbers in ((value, array), (turned, array.T)):
            if made is not None and made.uses():
                made.const_value = ir.tensor(np.ascontiguousarray(numbers), name=made.name)
                graph.register_initializer(made)
    return traced.model


def transposed(graph: ir.Graph, value: ir.Value) -> ir.Value | None:
    """One value in place of all transpositions of a matrix; None where there are none."""
    nodes = [node for node in value.consumers() if node.op_type == "Transpose"]
    if not nodes or value.shape is None or len(value.shape) != 2:
        return None
    made = ir.Value(
        name=f"{value.name}.transposed",
        type=value.type,
        shape=ir.Shape(tuple(reversed(value.shape.numpy()))),
    )
    for node in nodes:
        node.outputs[0].replace_all_uses_with(made)
        graph.remove(node, safe=True)
    return made


def trace_chain(chain: Chained, arguments: Sequence[Tensor]) -> Traced:
    """Trace a chain for arguments of these types and shapes; values are not looked at."""
    shapes = _shapes(chain, arguments)
    templates: dict[str, Template] = {}
    for piece in chain.pieces:
        if piece.like not in templates:
            templates[piece.like] = _template(piece, shapes[piece.like])
    return _Stitcher(chain, templates, arguments).stitched()


def _shapes(chain: Chained, arguments: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Blank arguments of the first piece of each kind, found by running the chain without
    values.
    """
    found: dict[str, list[Tensor]] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        values: dict[str, Tensor] = {
            name: mode.from_tensor(value)
            for name, value in zip(chain.inputs, arguments, strict=True)
        }
        for piece, given in chain.calls(values):
            if piece.like not in found:
                found[piece.like] = list(given)
    return {
        like: [torch.zeros(tuple(t.shape), dtype=t.dtype) for t in given]
        for like, given in found.items()
    }


def _template(piece: Piece, arguments: Sequence[Tensor]) -> Template:
    """The graph of a piece; the same one for all pieces of the same modules, sizes and
    arguments.
    """
    key = repr((_fingerprint(piece.module), piece.inputs, [(t.dtype, t.shape) for t in arguments]))
    if key not in _TEMPLATES:
        while len(_TEMPLATES) >= TEMPLATES_KEPT:
            del _TEMPLATES[next(iter(_TEMPLATES))]
        _TEMPLATES[key] = _traced(piece, arguments)
    return _TEMPLATES[key]


def _fingerprint(module: nn.Module) -> list[object]:
    """All that a trace depends on but weights: kinds of modules, their plain attributes, shapes."""
    return [
        (
            name,
            type(part).__qualname__,
            sorted((k, repr(v)) for k, v in vars(part).items() if not k.startswith("_")),
            [(k, v.shape, v.dtype) for k, v in part.named_parameters(recurse=False)],
        )
        for name, part in module.named_modules()
    ]


def _traced(piece: Piece, arguments: Sequence[Tensor]) -> Template:
    """A piece, traced with its weights as inputs and simplified."""
    module = piece.module.eval()
    with quiet_exporter():
        program = torch.onnx.export(
            module,
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(piece.inputs),
            output_names=list(piece.outputs),
            verbose=False,
            optimize=False,
        )
        if program is None:
            raise RuntimeError(f"torch.onnx.export gave no program for '{piece.like}'")
        graph = program.model.graph
        weights = _weights_as_inputs(graph, module)
        program.optimize()
    used = {name: value for name, value in weights.items() if value.uses()}
    for name, value in weights.items():
        if name not in used:
            graph.inputs.remove(value)
    return Template(graph, used)


def _weights_as_inputs(graph: ir.Graph, module: nn.Module) -> dict[str, ir.Value]:
    """Turn the initializers that are parameters into inputs behind the others."""
    found: dict[str, ir.Value] = {}
    for name, _ in module.named_parameters():
        if name in graph.initializers:
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
            found[name] = value
    return found


@dataclass
class _Stitcher:
    """Repeats templates behind each other, with one value for each weight and each constant."""

    chain: Chained
    templates: Mapping[str, Template]
    arguments: Sequence[Tensor]
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[bytes, ir.Value] = field(default_factory=dict)
    weights: dict[int, ir.Value] = field(default_factory=dict)

    def stitched(self) -> Traced:
        """The whole graph."""
        names = {id(weight): name for name, weight in self.chain.named_parameters()}
        inputs = [
            _input(name, tensor)
            for name, tensor in zip(self.chain.inputs, self.arguments, strict=True)
        ]
        values = dict(zip(self.chain.inputs, inputs, strict=True))
        for index, piece in enumerate(self.chain.pieces):
            self._add(index, piece, values)
        outputs = [self._output(values[name], name) for name in self.chain.outputs]
        given = {names[key]: value for key, value in self.weights.items()}
        for name, value in given.items():
            value.name = name
        graph = ir.Graph(
            [*inputs, *given.values()],
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name="main_graph",
        )
        model = ir.Model(graph, ir_version=10)
        return Traced(model, {value: name for name, value in given.items()})

    def _add(self, index: int, piece: Piece, values: dict[str, ir.Value]) -> None:
        """One piece's nodes; `values` takes its outputs."""
        template = self.templates[piece.like]
        graph = template.graph
        known: dict[ir.Value, ir.Value] = {}
        tensors = [value for value in graph.inputs if value not in template.weights.values()]
        for value, name in zip(tensors, piece.inputs, strict=True):
            if name in piece.constants:
                constant = piece.constants[name].detach().cpu().numpy()
                known[value] = self._constant(constant, f"{name}.{index}")
            else:
                known[value] = values[name]
        parameters = dict(piece.module.named_parameters())
        for name, value in template.weights.items():
            known[value] = self._weight(parameters[name], value, piece)
        for value in graph.initializers.values():
            assert value.const_value is not None
            known[value] = self._constant(value.const_value.numpy(), f"{CONSTANT}.{index}")
        for node in graph:
            self.nodes.append(_copied(node, known, index))
        outputs = [known[value] for value in graph.outputs]
        values.update(zip(piece.outputs, outputs, strict=True))

    def _weight(self, parameter: Tensor, value: ir.Value, piece: Piece) -> ir.Value:
        """The input that stands for a parameter."""
        shape = tuple(parameter.shape)
        assert value.shape is not None
        if value.shape.numpy() != shape:
            raise RuntimeError(
                f"pieces '{piece.like}' are not alike: {value.shape.numpy()} and {shape}"
            )
        made = ir.Value(shape=value.shape, type=value.type)
        return self.weights.setdefault(id(parameter), made)

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An initializer, the same one for the same numbers."""
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self.initializers:
            unique = f"{name}.{len(self.initializers)}"
            tensor = ir.tensor(array, name=unique)
            made = ir.Value(
                name=unique,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.initializers[key] = made
        return self.initializers[key]

    def _output(self, value: ir.Value, name: str) -> ir.Value:
        """The value under its name; of a node of its own where it is no node's."""
        if value.producer() is None:
            made = ir.Value(name=name, shape=value.shape, type=value.type)
            self.nodes.append(ir.Node("", "Identity", [value], outputs=[made]))
            return made
        value.name = name
        return value


def _input(name: str, tensor: Tensor) -> ir.Value:
    dtype = ir.DataType.from_numpy(tensor.numpy().dtype)
    return ir.Value(name=name, shape=ir.Shape(tuple(tensor.shape)), type=ir.TensorType(dtype))


def _copied(node: ir.Node, known: dict[ir.Value, ir.Value], index: int) -> ir.Node:
    """The node again, between the values that stand for its own."""
    outputs = []
    for value in node.outputs:
        made = ir.Value(name=f"{value.name}.{index}", shape=value.shape, type=value.type)
        known[value] = made
        outputs.append(made)
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else known[value] for value in node.inputs],
        list(node.attributes.values()),
        overload=node.overload,
        outputs=outputs,
        version=node.version,
        name=f"{node.name}.{index}",
    )
