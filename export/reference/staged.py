"""Stages of one policy under many plans, by torch or by ONNX Runtime: what reference checks run on.

Two classes with the same method. `ExportedRuns` exports each stage when it is first asked for, as a
bundle would, and once where plans leave it the same. Knows no family and no reference data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from trimvla.export.graphs.to_onnx import export_stage
from trimvla.policies.families import family_of
from trimvla.policies.stage import Stage
from trimvla.runtime.backends.runner import Runner, create
from trimvla.runtime.bundle.manifest_types import StageSpec
from trimvla.runtime.bundle.plan import Plan

Tensors = dict[str, Tensor]


class StageRuns(Protocol):
    """Runs a stage of a policy under a plan."""

    backend: str

    def run(self, plan: Plan, stage: Stage, tensors: Mapping[str, Tensor]) -> Tensors:
        """The stage's outputs by name; `tensors` holds its inputs, and may hold more."""
        ...


class TorchRuns:
    """By torch: the oracle."""

    def __init__(self, policy: nn.Module) -> None:
        """Of a dense policy."""
        self.backend = f"torch {torch.__version__}"
        self.policy = policy
        self.trimmed: dict[bytes, nn.Module] = {}

    def run(self, plan: Plan, stage: Stage, tensors: Mapping[str, Tensor]) -> Tensors:
        """See `StageRuns`."""
        key = msgspec.json.encode(plan)
        if key not in self.trimmed:
            self.trimmed[key] = trimmed(self.policy, plan)
        module = stage.module(self.trimmed[key])
        with torch.no_grad():
            result = module(*(tensors[name] for name in stage.inputs))
        outputs = result if isinstance(result, tuple) else (result,)
        return dict(zip(stage.outputs, outputs, strict=True))


class ExportedRuns:
    """By ONNX Runtime, through graphs exported under each plan into a directory."""

    def __init__(self, policy: nn.Module, directory: Path) -> None:
        """Of a dense policy; the directory must outlive the object."""
        self.backend = "onnxruntime"
        self.policy = policy
        self.directory = directory
        self.runners: dict[bytes, Runner] = {}
        self.graphs: dict[str, Graph] = {}

    def run(self, plan: Plan, stage: Stage, tensors: Mapping[str, Tensor]) -> Tensors:
        """See `StageRuns`."""
        inputs = {name: tensors[name].numpy() for name in stage.inputs}
        outputs = self._runner(plan, stage).run(inputs)
        return {name: torch.from_numpy(outputs[name]) for name in stage.outputs}

    def _runner(self, plan: Plan, stage: Stage) -> Runner:
        key = stage.name.encode() + msgspec.json.encode(plan)
        if key not in self.runners:
            self.runners[key] = self._graph(plan, stage).runner
        return self.runners[key]

    def _graph(self, plan: Plan, stage: Stage) -> Graph:
        policy = trimmed(self.policy, plan)
        specs = family_of(policy.cfg).tensor_specs(policy.cfg, plan)
        inputs = tuple(specs[name] for name in stage.inputs)
        outputs = tuple(specs[name] for name in stage.outputs)
        module = stage.module(policy)
        key = repr((stage.name, inputs, outputs, made_of(module)))
        if key not in self.graphs:
            path = self.directory / f"{stage.name}{len(self.graphs)}.onnx"
            export_stage(policy, stage, path)
            spec = StageSpec(path.name, inputs, outputs)
            runner = create("onnxruntime", path, spec, threads=1)
            self.graphs[key] = Graph(module, runner)
        return self.graphs[key]


@dataclass(frozen=True)
class Graph:
    """An exported stage; `module`, what was traced, is kept so that its parts stay the only ones of
    their identity.
    """

    module: nn.Module
    runner: Runner


def made_of(module: nn.Module) -> list[object]:
    """What a stage's module consists of: its kind, its plain attributes, and the very parts in it.

    Two modules made of the same compute the same: a vision stage of two plans that leave vision
    whole. One that holds a policy is made of another for each plan.
    """
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    parts = (
        *module.named_children(),
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    )
    return [
        type(module).__qualname__,
        sorted((name, repr(value)) for name, value in plain.items()),
        [(name, id(part)) for name, part in parts],
    ]


def trimmed(policy: nn.Module, plan: Plan) -> Any:  # noqa: ANN401
    """The policy under the plan, as its family trims it."""
    return family_of(policy.cfg).trim(policy, plan)
