"""CogACT's row of the table of families.

Imports no torch: what needs it is imported when it is called.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.policies.families import Family, lazily
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.sizes.cost import report, shape_of
from trimvla.policies.sizes.cost_report import CostReport
from trimvla.policies.sizes.counts import trimmable
from trimvla.policies.sizes.memory import WORKSPACE_BYTES, MemoryPlan, plan_memory
from trimvla.policies.sizes.roofline import scaled_ms
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import ConfigError

HERE = "trimvla.policies.cogact"


def recognises(directory: Path) -> bool:
    """Whether `checkpoints/` holds a .pt file: the official layout."""
    return any((directory / "checkpoints").glob("*.pt"))


def cost(
    cfg: PolicyConfig, plan: Plan, cameras: int | None = None, prompt: int | None = None
) -> CostReport:
    """See `Family.cost`."""
    if cameras not in (None, 1):
        raise ConfigError(f"expected 1 camera for '{cfg.name}', got {cameras}")
    return report(cfg, shape_of(cfg, plan), prompt)


def memory(
    cfg: PolicyConfig,
    plan: Plan,
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """See `Family.memory`."""
    return plan_memory(cfg, shape_of(cfg, plan), precision, backend, workspace)


FAMILY = Family(
    name="cogact",
    config_type=PolicyConfig,
    presets=PRESETS,
    recognises=recognises,
    looks_for="checkpoints/*.pt",
    tokenizer_hint=(
        "CogACT uses LLaMA-2's, which is gated: take `tokenizer.json` from your own copy of that"
        " model"
    ),
    several_checkpoints=True,
    lend_weights=lazily(f"{HERE}.weights:CheckpointWeights"),
    calibrates=True,
    open_checkpoint=lazily(f"{HERE}.source:open_checkpoint"),
    build=lazily(f"{HERE}.source:build"),
    layout=lazily(f"{HERE}.source:layout"),
    trim=lazily("trimvla.policies.trimming.trimmed:trim"),
    check_plan=lazily("trimvla.policies.trimming.trimmed:check"),
    stages=lazily(f"{HERE}.stages:stages"),
    tensor_specs=lazily(f"{HERE}.stages:tensor_specs"),
    example_inputs=lazily(f"{HERE}.stages:example_inputs"),
    describe=lazily(f"{HERE}.source:describe"),
    cost=cost,
    trimmable=trimmable,
    memory=memory,
    estimate=scaled_ms,
    reference="trimvla.export.reference.cogact:FAMILY",
)
