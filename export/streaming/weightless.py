"""A stage's graph without its weights, and which weight belongs where in it: for policies larger
than memory.

A policy's parameters are replaced by stand-ins of their shapes and types that take no memory, and
the stage is traced. While the graph is simplified its weights are inputs, so that nothing can be
computed from values that are not there; then each weight becomes a slot of a file beside the graph.
Knows no values and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from trimvla.export.graphs.chained import trace_chain
from trimvla.export.graphs.to_onnx import blanks, quiet_exporter, strip, trace
from trimvla.export.precision.half import halve_unfolded
from trimvla.policies.chained import Chained
from trimvla.policies.cogact.half import in_precision
from trimvla.policies.cogact.layout import build_meta
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.weights import Weights
from trimvla.policies.families import family_of
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.stage import Stage
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle.plan import Plan

PAGE = 4096  # where a large weight begins: a page of memory, as the ONNX format advises for mapping
# smaller ones need not fill pages
SMALL = 1 << 20
SMALL_ALIGNED = 64
TRANSPOSED = ".transposed"
TORCH_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
TYPES = {ours: theirs for theirs, ours in TORCH_TYPES.items()}


@dataclass(frozen=True)
class Slot:
    """The place of one weight in the file: `name` is the graph's, `weight` the trimmed policy's."""

    name: str
    weight: str
    transposed: bool
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.bytes


@dataclass(frozen=True)
class Skeleton:
    """A graph whose weights lie in `slots` of a file that need not exist yet."""

    model: ir.Model
    slots: tuple[Slot, ...]

    @property
    def bytes(self) -> int:
        """Length of the file."""
        return self.slots[-1].end if self.slots else 0


def stand_in(cfg: PolicyConfig, plan: Plan, dtype: torch.dtype) -> CogAct:
    """The policy under the plan and in the precision: every parameter one zero, seen as its whole
    shape.

    Raises:
        ConfigError: the plan does not fit.
    """
    policy = in_precision(trim(build_meta(cfg), plan), dtype).eval()
    for module in policy.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            zero = torch.zeros((), dtype=weight.dtype)
            setattr(module, name, nn.Parameter(zero.expand(weight.shape), requires_grad=False))
    return policy


@dataclass(frozen=True)
class Blank:
    """A policy under its plan, of stand-ins, whose weights are all dense ones."""

    policy: nn.Module
    names: Mapping[int, str]
    """id of a parameter -> the dense policy's name of it."""
    held: tuple[nn.Parameter, ...] = ()
    """Every parameter of the dense policy: an id names nothing that is gone."""


def blank_policy(
    cfg: Any,  # noqa: ANN401 - the family's
    plan: Plan,
    weights: Weights,
) -> Blank:
    """A policy of a family with `streaming`; what its stages compute constants from has values."""
    family = family_of(cfg)
    assert family.streaming is not None  # the caller has checked
    dense = family.streaming.build_meta(cfg)
    names: dict[int, str] = {}
    held: list[nn.Parameter] = []
    for prefix, module in dense.named_modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            full = f"{prefix}.{name}".lstrip(".")
            if family.streaming.computes.fullmatch(full):
                with weights.lend(full) as lent:
                    value = lent.float().clone()
            else:
                value = torch.zeros((), dtype=torch.float32).expand(weight.shape)
            made = nn.Parameter(value, requires_grad=False)
            setattr(module, name, made)
            names[id(made)] = full
            held.append(made)
    return Blank(family.trim(dense, plan).eval(), names, tuple(held))


def skeleton(policy: CogAct, stage: Stage, data_file: str) -> Skeleton:
    """Trace a stage of stand-ins.

    Args:
        policy: from `stand_in`.
        stage: which one.
        data_file: name of the file of weights, beside the graph's.
    """
    ours = {id(weight): name for name, weight in policy.named_parameters()}
    return _skeleton(Blank(policy, ours), stage, data_file, "float32")


def blank_skeleton(blank: Blank, stage: Stage, data_file: str, precision: str) -> Skeleton:
    """The same of any family's policy, in float32 or halved as `precision.half` does it."""
    return _skeleton(blank, stage, data_file, precision)


def _skeleton(blank: Blank, stage: Stage, data_file: str, precision: str) -> Skeleton:
    module = stage.module(blank.policy)
    names = {name: blank.names[id(weight)] for name, weight in module.named_parameters()}
    if isinstance(module, Chained):
        traced = trace_chain(module, blanks(blank.policy, stage))
        model = traced.model
        weights = {value: names[name] for value, name in traced.weights.items()}
    else:
        program = trace(blank.policy, stage, module, optimize=False)
        weights = _weights_as_inputs(program.model.graph, names)
        with quiet_exporter():
            program.optimize()
        model = program.model
    strip(model)
    used = _fold_transposes(model.graph, weights)
    if precision != "float32":
        used = _halved(model.graph, used, precision)
    return Skeleton(model, _assign_slots(model.graph, used, data_file))


def _halved(graph: ir.Graph, used: Sequence[_Use], precision: str) -> list[_Use]:
    """The graph in half precision; the weights as it reads them then, without values."""
    known = {use.value: use for use in used}
    for use in used:
        _enter(graph, use.value)

    def narrow(value: ir.Value, name: str, half: ir.DataType) -> ir.Value | None:
        if value not in known:
            return None
        made = ir.Value(name=name, type=ir.TensorType(half), shape=value.shape)
        _enter(graph, made)
        known[made] = replace(known[value], value=made)
        return made

    halve_unfolded(graph, precision, narrow)
    return [use for use in known.values() if use.value.uses()]


def _enter(graph: ir.Graph, value: ir.Value) -> None:
    """Make a weight an initializer that lies in a file which is not there yet."""
    assert value.dtype is not None and value.shape is not None
    length = TORCH_TYPES[value.dtype].itemsize * torch.Size(value.shape.numpy()).numel()
    value.const_value = ir.ExternalTensor(
        "unwritten", 0, length, value.dtype, shape=value.shape, name=str(value.name)
    )
    graph.register_initializer(value)


def _weights_as_inputs(graph: ir.Graph, names: dict[str, str]) -> dict[ir.Value, str]:
    """Turn the parameters that the stage uses from initializers into inputs; each with the policy's
    name.
    """
    found: dict[ir.Value, str] = {}
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        ours = names[name]
        value.const_value = None
        graph.inputs.append(value)
        found[value] = ours
    return found


@dataclass(frozen=True)
class _Use:
    """A weight as the graph reads it."""

    value: ir.Value
    weight: str
    transposed: bool


def _fold_transposes(graph: ir.Graph, weights: dict[ir.Value, str]) -> list[_Use]:
    """Let the file hold transposed what the graph only reads transposed; the weights are no inputs
    afterwards.
    """
    used: list[_Use] = []
    for value, weight in weights.items():
        graph.inputs.remove(value)
        turned = [
            node
            for node in value.consumers()
            if node.op_type == "Transpose" and len(value.shape or ()) == 2
        ]
        if turned:
            used.append(_Use(_turn(graph, value, turned), weight, True))
        if value.uses():
            used.append(_Use(value, weight, False))
    return used


def _turn(graph: ir.Graph, value: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """One value in place of all these transpositions of a matrix."""
    assert value.shape is not None
    made = ir.Value(
        name=f"{value.name}{TRANSPOSED}",
        type=value.type,
        shape=ir.Shape(reversed(list(value.shape))),
    )
    for node in nodes:
        node.outputs[0].replace_all_uses_with(made)
        graph.remove(node, safe=True)
    return made


def _assign_slots(graph: ir.Graph, used: list[_Use], data_file: str) -> tuple[Slot, ...]:
    """Give every weight its place in the file, in the graph's order, and enter it in the graph."""
    slots: list[Slot] = []
    end = 0
    for use in used:
        slot = _slot_from(use, end)
        use.value.const_value = ir.ExternalTensor(
            data_file,
            slot.offset,
            slot.bytes,
            TYPES[slot.dtype],
            shape=ir.Shape(slot.shape),
            name=slot.name,
        )
        graph.register_initializer(use.value)
        slots.append(slot)
        end = slot.end
    return tuple(slots)


def _slot_from(use: _Use, end: int) -> Slot:
    """The first aligned place from `end` on."""
    name = use.value.name
    shape = use.value.shape
    dtype = use.value.dtype
    assert name is not None and shape is not None and dtype is not None
    slot = Slot(name, use.weight, use.transposed, TORCH_TYPES[dtype], shape.numpy(), end)
    aligned = PAGE if slot.bytes >= SMALL else SMALL_ALIGNED
    return replace(slot, offset=-(-end // aligned) * aligned)
