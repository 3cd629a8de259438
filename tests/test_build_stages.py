"""Every stage that is meant for a robot parses and builds without a GPU: shipped ones, two layers
at full width.

TensorRT for RTX parses, shapes and lowers them; the table of TensorRT 10.3 is asked about the same
files. A bundle of any precision can be given; one that is made in half precision stands for those
that are exported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from tests.trt_parts import check_stage, library_or_skip
from trimvla.export.graphs.stages import stage_spec
from trimvla.export.graphs.to_onnx import export_stage
from trimvla.export.precision.table import convert
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.stages import stages
from trimvla.policies.families import parse_config
from trimvla.policies.nn.cachers import every
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.stage import Stage
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.backends.tensorrt.library import TrtLibrary
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import PLAIN
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask

SLICE = PRESETS["cogact-base"]
TRIMMED = Plan(
    channels=(
        mask(range(SLICE.language.mlp_hidden)),
        mask(range(SLICE.language.mlp_hidden * 3 // 4)),
    ),
    tokens=TokenPlan(keep=56, after=1),
    recompute=every(5, SLICE.diffusion.inference_steps),
)
HALVED = ("visual", "cognition")  # the noise stays as it is: the sampler's state is in float32


@pytest.fixture(scope="module")
def library() -> TrtLibrary:
    return library_or_skip()


def shipped_stages() -> Iterator[tuple[str, str, str]]:
    """Bundle, precision, stage: every bundle as it is, and one in float32 also in float16, as far
    as `trimvla export` makes it so: no guided stages.
    """
    for name in bundles.shipped():
        manifest = bundles.load(bundles.resolve(name), verify_hashes=False)
        yield from ((name, manifest.precision, stage) for stage in manifest.stages)
        if manifest.precision == "float32":
            yield from ((name, "float16", stage) for stage in manifest.modes[PLAIN])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "stage"), list(shipped_stages()))
def test_a_shipped_stage_builds(
    library: TrtLibrary, name: str, precision: str, stage: str, tmp_path: Path
) -> None:
    directory = bundles.resolve(name)
    manifest = bundles.load(directory, verify_hashes=False)
    for file in directory.glob("*.onnx"):  # all: one stage may read its weights from another's file
        shutil.copyfile(file, tmp_path / file.name)
    spec = manifest.stages[stage]
    if precision != manifest.precision:
        convert({stage: tmp_path / spec.file}, precision, parse_config(manifest.policy))
    assert manifest.prompt is not None
    check_stage(library, tmp_path / spec.file, spec, manifest.prompt.buckets, precision)


def single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def half(stage: Stage) -> Stage:
    """The stage of a policy in half precision, with its border in float32."""

    def module(policy: CogAct) -> nn.Module:
        made = stage.module(policy)
        inner = made.forward

        @wraps(inner)  # the exporter reads the signature
        def forward(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            given = [
                v.half() if name in HALVED else v
                for name, v in zip(stage.inputs, inputs, strict=True)
            ]
            out = inner(*given)
            return tuple(map(single, out)) if isinstance(out, tuple) else single(out)

        made.forward = forward
        return made

    return replace(stage, module=module)


def sliced(cfg: PolicyConfig, layers: int) -> PolicyConfig:
    """The preset's widths with so many layers of each kind, few words and one prompt length."""
    change = msgspec.structs.replace
    return change(
        cfg,
        vision=tuple(change(vit, depth=layers, feature_block=layers - 1) for vit in cfg.vision),
        language=change(cfg.language, layers=layers, vocab=64),
        head=change(cfg.head, depth=layers),
        prompt=change(
            cfg.prompt, bos_id=1, eos_id=2, empty_id=3, pad_id=0, buckets=cfg.prompt.buckets[:1]
        ),
    )


@torch.no_grad()
def policy_of_noise(cfg: PolicyConfig) -> CogAct:
    """Float16 weights that no builder takes for zeros, made in no time: one row of noise again and
    again.
    """
    with torch.device("meta"):
        policy = CogAct(cfg)
    policy = policy.half().to_empty(device="cpu").eval().requires_grad_(False)
    noise = torch.randn(8191).half() / 50  # a prime: no two rows of a matrix are the same
    for weight in policy.parameters():
        flat = weight.view(-1)
        flat.copy_(noise.repeat(-(-flat.numel() // len(noise)))[: flat.numel()])
    return policy


@pytest.mark.slow
def test_two_layers_of_cogact_base_build(library: TrtLibrary, tmp_path: Path) -> None:
    """One decoder layer as it is, one as the paper's plans leave it: narrower, on 56 tokens."""
    policy = trim(policy_of_noise(sliced(SLICE, 2)), TRIMMED)
    for stage in stages(policy.cfg, policy.plan):  # exported in float16
        path = tmp_path / f"{stage.name}.onnx"
        export_stage(policy, half(stage), path)
        spec = stage_spec(policy.cfg, stage, path.name, policy.plan)
        check_stage(library, path, spec, policy.cfg.prompt.buckets, "float16")
