"""The stages of one policy under many plans, by torch or by ONNX Runtime: what the reference checks
run on.

Two classes with the same methods. `ExportedStages` exports each stage when it is first asked for,
as a bundle would, and takes the sampler's trajectory from the pair of step graphs, driven from
NumPy. Knows no reference data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from trimvla.export.graphs.stages import stage_spec
from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.reference.stepper import SamplerStep, trajectory
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.stages import STEP_STAGES, guidance_scale, stages
from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.diffusion import ddim_steps, ddim_trajectory, guided
from trimvla.policies.stage import Stage
from trimvla.policies.trimming.trimmed import sampler_steps, trim
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.backends.runner import Runner, create
from trimvla.runtime.bundle.plan import Plan

DENSE = Plan()


class PlannedStages(Protocol):
    """What a policy gives under a plan, stage by stage; batch 1."""

    backend: str

    def visual(self, image: Tensor) -> Tensor:
        """uint8[1, S, S, 3] -> float[1, P, D]."""
        ...

    def cognition(
        self, plan: Plan, visual: Tensor, input_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """float[1, P, D], int64[1, L] without padding -> float[1, D], and int64[1, K] where tokens
        are dropped.
        """
        ...

    def sample(self, plan: Plan, cognition: Tensor, noise: Tensor) -> Tensor:
        """float[1, D], float[1, H, A] -> float[1, H, A]."""
        ...

    def trajectory(self, plan: Plan, cognition: Tensor, noise: Tensor) -> Iterator[Tensor]:
        """Like `sample`, after every step."""
        ...


class TorchStages:
    """By torch: the oracle."""

    backend = f"torch {torch.__version__}"

    def __init__(self, policy: CogAct) -> None:
        """Of a dense policy."""
        self.policy = policy

    def visual(self, image: Tensor) -> Tensor:
        """See `PlannedStages`."""
        return self.policy.vision(image)

    def cognition(
        self, plan: Plan, visual: Tensor, input_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedStages`."""
        language = trim(self.policy, plan).language
        last = last_index(input_ids)
        if plan.tokens is not None and isinstance(language, TrimmedDecoder):
            return language.cognition_and_kept(visual, input_ids, last)
        return language.cognition(visual, input_ids, last), None

    def sample(self, plan: Plan, cognition: Tensor, noise: Tensor) -> Tensor:
        """See `PlannedStages`."""
        return trim(self.policy, plan).act(cognition, noise)

    def trajectory(self, plan: Plan, cognition: Tensor, noise: Tensor) -> Iterator[Tensor]:
        """See `PlannedStages`."""
        policy = trim(self.policy, plan)
        table = sampler_table(policy)
        net = CachedDit(policy.head, [index for index, step in enumerate(table) if step.recompute])
        steps = ddim_steps(policy.cfg.diffusion.train_steps, len(table))
        for x, _ in ddim_trajectory(guided(net, cognition, guidance_scale(policy)), noise, steps):
            yield x


class ExportedStages:
    """By ONNX Runtime, through graphs exported under each plan into a directory."""

    backend = "onnxruntime"

    def __init__(self, policy: CogAct, directory: Path) -> None:
        """Of a dense policy; the directory must outlive the object."""
        self.policy = policy
        self.directory = directory
        self.runners: dict[bytes, Runner] = {}

    def visual(self, image: Tensor) -> Tensor:
        """See `PlannedStages`."""
        return self._run("vision", DENSE, image=image)["visual"]

    def cognition(
        self, plan: Plan, visual: Tensor, input_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `PlannedStages`."""
        got = self._run(
            "language", plan, visual=visual, input_ids=input_ids, last=last_index(input_ids)
        )
        return got["cognition"], got.get("kept")

    def sample(self, plan: Plan, cognition: Tensor, noise: Tensor) -> Tensor:
        """See `PlannedStages`."""
        return self._run("action", plan, cognition=cognition, noise=noise)["actions"]

    def trajectory(self, plan: Plan, cognition: Tensor, noise: Tensor) -> Iterator[Tensor]:
        """See `PlannedStages`."""
        table = sampler_table(trim(self.policy, plan))
        # which steps are reused is the program's affair, not the graphs'
        pair = Plan(guidance=plan.guidance)
        full, reuse = (self._runner(stage, pair) for stage in STEP_STAGES)
        for x in trajectory(full, reuse, table, cognition.numpy(), noise.numpy()):
            yield torch.from_numpy(np.asarray(x, np.float32))

    def _run(self, name: str, plan: Plan, **inputs: Tensor) -> dict[str, Tensor]:
        stage = next(stage for stage in stages(self.policy.cfg, plan) if stage.name == name)
        outputs = self._runner(stage, plan).run(
            {key: value.numpy() for key, value in inputs.items()}
        )
        return {key: torch.from_numpy(value) for key, value in outputs.items()}

    def _runner(self, stage: Stage, plan: Plan) -> Runner:
        key = stage.name.encode() + msgspec.json.encode(plan)
        if key not in self.runners:
            path = self.directory / f"{stage.name}{len(self.runners)}.onnx"
            export_stage(trim(self.policy, plan), stage, path)
            spec = stage_spec(self.policy.cfg, stage, path.name, plan)
            self.runners[key] = create("onnxruntime", path, spec, threads=1)
        return self.runners[key]


def last_index(input_ids: Tensor) -> Tensor:
    """int64[1, L] without padding -> int64[1]."""
    return torch.tensor([input_ids.shape[1] - 1])


def sampler_table(policy: CogAct) -> list[SamplerStep]:
    """The sampler of a policy under its plan, as the runtime takes it."""
    steps = ddim_steps(policy.cfg.diffusion.train_steps, sampler_steps(policy.plan, policy.cfg))
    recompute = range(len(steps)) if policy.plan.recompute is None else policy.plan.recompute
    return [SamplerStep(step, i in recompute) for i, step in enumerate(steps)]
