"""A policy of random weights on one device, its three stages chained on tensors that lie ready, in
several ways.

Latency does not depend on the values of weights, so no checkpoint is needed. A way is eager torch,
compiled blocks, or a CUDA graph of either: one graph of all three stages, which a single launch
replays, and one of each stage for the table. Knows no clock and no report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trimvla.policies.cogact.compiled import compile_blocks
from trimvla.policies.cogact.fused import fuse
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.stages import STAGES, example_inputs, stages
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.runtime.bundle.plan import Plan

TOTAL = "total"
NAMES = tuple(stage.name for stage in STAGES)
WARM_UP = 3  # runs before a capture: kernels are chosen, workspaces allocated

Run = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """How a policy is run; `fused`: with joined projections."""

    name: str
    compiled: bool = False
    graph: bool = False

    @property
    def fused(self) -> bool:
        """Graphs are our fast path, the others are the baselines as anybody runs them."""
        return self.graph


EAGER = Way("torch-eager")
COMPILED = Way("torch-compile", compiled=True)
GRAPH = Way("cuda-graph", graph=True)
COMPILED_GRAPH = Way("cuda-graph-compile", compiled=True, graph=True)
WAYS = (EAGER, COMPILED, GRAPH, COMPILED_GRAPH)


@torch.no_grad()
def random_policy(cfg: PolicyConfig, device: str, dtype: torch.dtype, seed: int = 0) -> CogAct:
    """A dense policy with random weights, made on the device; small ones, so that no activation
    overflows.
    """
    with torch.device("meta"):
        policy = CogAct(cfg)
    policy = policy.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, weight in policy.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, 0.02, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return policy


def device_inputs(cfg: PolicyConfig, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Random stage inputs of the smallest prompt bucket, by tensor name."""
    made = example_inputs(cfg, Plan(), cfg.prompt.buckets[0], torch.Generator().manual_seed(seed))
    return {name: tensor.to(device) for name, tensor in made.items()}


class DevicePolicy:
    """One policy, run in one way on inputs that do not move."""

    def __init__(self, policy: CogAct, way: Way, inputs: Mapping[str, Tensor]) -> None:
        """Fuse, compile and capture a policy, dense or trimmed, in this way; its weights are
        shared, not copied.

        Raises whatever torch raises where it cannot.
        """
        self.parameters = sum({p.data_ptr(): p.numel() for p in policy.parameters()}.values())
        policy = fuse(policy) if way.fused else policy
        policy = compile_blocks(policy) if way.compiled else policy
        self._stages = {
            stage.name: (stage.module(policy), stage) for stage in stages(policy.cfg, policy.plan)
        }
        self._tensors = dict(inputs)
        with torch.inference_mode():
            self._run_all()
            # stages' graphs read these places for good; the run of all makes new ones
            self._read = dict(self._tensors)
            self.runs: dict[str, Run] = {name: self._stage_run(name) for name in NAMES} | {
                TOTAL: self._run_all
            }
            if way.graph:
                self.runs = {name: capture(run) for name, run in self.runs.items()}

    def actions(self) -> Tensor:
        """Run all, float32[1, H, A]."""
        with torch.inference_mode():
            self.runs[TOTAL]()
        return self._tensors["actions"].float().clone()

    def _run_stage(self, name: str) -> dict[str, Tensor]:
        module, stage = self._stages[name]
        result = module(*(self._tensors[tensor] for tensor in stage.inputs))
        return dict(
            zip(stage.outputs, result if isinstance(result, tuple) else (result,), strict=True)
        )

    def _stage_run(self, name: str) -> Run:
        """One stage alone, on the inputs that the stages before it gave."""
        return lambda: self._run_stage(name)

    def _run_all(self) -> None:
        for name in NAMES:
            self._tensors.update(self._run_stage(name))


def capture(run: Run) -> Run:
    """A CUDA graph of what `run` launches; its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
