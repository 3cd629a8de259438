"""Every stage of every family parses and builds with TensorRT for RTX, and TensorRT 10.3 knows its
operators: plain in float16, as `trimvla export --dtype float16` makes it, and guided in float32,
the precision that it has.

The policies are those of the reference fixtures, each under one plan of few layers and steps.
Those with all parts hold the operators of the dense ones too; pi0 and pi0.5 have one prefix between
them, which is built once; a pi0 that keeps every token is shipped (test_build_stages).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import act_policy
from tests.trt_parts import check_stage, library_or_skip
from trimvla.export.bundle import export_to
from trimvla.export.graphs.stages import is_guided, stages_of
from trimvla.export.precision.table import convert
from trimvla.launch.exporting.policy_source import load_policy
from trimvla.policies.families import FAMILIES, FIRST, family_of
from trimvla.runtime.backends.tensorrt.library import TrtLibrary
from trimvla.runtime.bundle.manifest import StageSpec
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.bundle.vision_plan import PatchPlan, VisionPlan

VISION = VisionPlan(blocks=((0, 2),), patches=PatchPlan(keep=12, after=1))
REUSE = (0, 2)
PI = Plan(
    layers=(0, 3),
    tokens=TokenPlan(keep=7, after=1, key=2),
    vision=VISION,
    steps=3,
    recompute=REUSE,
)
PLANS = {
    "smolvla": Plan(
        layers=(0, 1, 3),
        tokens=TokenPlan(keep=7, after=2, key=2, source="expert"),
        vision=VISION,
        steps=3,
        recompute=REUSE,
    ),
    "pi0": PI,
    "pi05": PI,
    "dbcogact": Plan(
        layers=(0, 3), tokens=TokenPlan(keep=7, after=1, key=2), steps=2, recompute=(0,)
    ),
}
PREFIX_OF_ANOTHER = ("pi05",)  # pi0's, with other sizes


@pytest.fixture(scope="module")
def library() -> TrtLibrary:
    torch.set_num_threads(1)
    return library_or_skip()


def test_no_family_is_left_out() -> None:
    """The first one has its own file, test_build_stages; ACT has nothing to guide."""
    assert set(PLANS) | {FIRST, "act"} == set(FAMILIES)


@pytest.mark.slow
def test_every_stage_of_act_builds(library: TrtLibrary, tmp_path: Path) -> None:
    plan = Plan(layers=(0, 2))
    policy = family_of(act_policy.TINY).trim(act_policy.random_policy(), plan)
    specs = {stage.name: export_to(policy, stage, tmp_path) for stage in stages_of(policy)}
    for spec in specs.values():
        check_stage(library, tmp_path / spec.file, spec, (), "float32")
    paths = {name: tmp_path / spec.file for name, spec in specs.items()}
    convert(paths, "float16", act_policy.TINY)
    for spec in specs.values():
        check_stage(library, tmp_path / spec.file, spec, (), "float16")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_stage_builds(
    library: TrtLibrary, name: str, shared_dir: Path, tmp_path: Path
) -> None:
    source = shared_dir / "fixtures" / f"{name}_tiny_a"
    if not source.is_dir():
        pytest.skip(f"no reference fixture at {source}")
    dense = load_policy(source, None)
    cfg: Any = dense.cfg
    policy = family_of(cfg).trim(dense, PLANS[name])
    guided: dict[str, StageSpec] = {}
    plain: dict[str, StageSpec] = {}
    for stage in stages_of(policy, guided=True):
        if name in PREFIX_OF_ANOTHER and "actions" not in stage.outputs[0]:
            continue
        kind = guided if is_guided(stage) else plain
        kind[stage.name] = export_to(policy, stage, tmp_path)
    assert guided and plain
    for spec in guided.values():  # before: it reads the float32 weights of the plain stage
        check_stage(library, tmp_path / spec.file, spec, cfg.prompt.buckets, "float32")
    convert({stage: tmp_path / spec.file for stage, spec in plain.items()}, "float16", cfg)
    for spec in plain.values():
        check_stage(library, tmp_path / spec.file, spec, cfg.prompt.buckets, "float16")
