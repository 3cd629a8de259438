"""A bundle against torch: the same inputs through both, compared at every boundary.

Each stage is fed with torch's own inputs, so a difference points at the stage that made it;
`end_to_end` runs the bundle's stages one after the other, on the actions as the runtime clips them.
Knows runners only by their contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from trimvla.export.compare import Comparison, Limit, LowerComparison, ScaledComparison, report
from trimvla.export.graphs.stages import KEPT, is_guided, prompt_lengths, stages_of, walk
from trimvla.export.parity import Parity
from trimvla.export.precision.emulate_bf16 import EmulatedRunner
from trimvla.policies.families import family_of, parse_config
from trimvla.policies.own_file import load_own
from trimvla.policies.recovery.patch import Patch, read_patch, under_patch
from trimvla.policies.stage import SAMPLED_TOLERANCE, Stage
from trimvla.runtime.backends.runner import Runner, create
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import GUIDED_SUFFIX, Manifest, StageSpec
from trimvla.runtime.errors import BundleError, CheckpointError

END_TO_END = "end_to_end"
SHARPEST = "float32"
PATCH_SUFFIX = ".patch.safetensors"
LIMITS: dict[str, dict[str, Limit]] = {
    # Limit(worst, typical)
    "float16": {
        "visual": Limit(2e-3, 1e-3),
        "cognition": Limit(0.02, 2e-3),
        KEPT: Limit(0.10, 0.02),
        "actions": Limit(1.0, 0.01),
        END_TO_END: Limit(1.5, 0.02),
    },
    "bfloat16": {
        "visual": Limit(0.03, 0.015),
        "cognition": Limit(0.10, 0.04),
        KEPT: Limit(0.20, 0.10),
        "actions": Limit(1.0, 0.05),
        END_TO_END: Limit(1.5, 0.15),
    },
    "int8": {
        "visual": Limit(0.06, 0.04),
        "cognition": Limit(0.20, 0.06),
        KEPT: Limit(0.30, 0.10),
        "actions": Limit(1.0, 0.12),
        END_TO_END: Limit(1.5, 0.20),
    },
    "int8-dynamic": {
        "visual": Limit(0.06, 0.04),
        "cognition": Limit(0.20, 0.06),
        KEPT: Limit(0.30, 0.10),
        "actions": Limit(1.0, 0.12),
        END_TO_END: Limit(1.5, 0.20),
    },
}
"""Of lower precisions, relative to float32 torch; of `kept`, the share of tokens that differ. The
worst of sampled actions means little (see `SAMPLED_TOLERANCE`): noise between two modes goes to
either, and a whole chunk differs.
"""


def verify_bundle(
    bundle: str | Path,
    policy: nn.Module | None = None,
    *,
    patch: Path | None = None,
    backend: str | None = None,
    provider: str | None = None,
    samples: int = 4,
    seed: int = 1,
) -> Parity:
    """Compare a bundle with torch on random inputs of every prompt bucket.

    Args:
        bundle: its path, or the name of a shipped one.
        policy: the dense policy it was exported from; when left out, the checkpoint beside the
            bundle is loaded
            (`<bundle>.safetensors`, or `<policy>.safetensors`).
        patch: the recovered weights it was exported with; when left out, and the bundle has any,
            the file beside it (`<bundle>.patch.safetensors`).
        backend: what runs the bundle, see `runtime.runner`; when left out, what its own proof ran
            on.
        provider: what executes inside the backend.
        samples: inputs per bucket.
        seed: of the inputs; `export_policy` used 0.

    Returns:
        {"ok", "compared", "failed", "absent", "groups": {boundary: {"compared", "worst",
        "worst_key", "mean", "cosine", "tolerance"}}, "bundle", "against", "runners"}.

    Raises:
        BundleError: the bundle cannot be loaded, or is of another policy.
        CheckpointError: no policy is given and none lies beside the bundle; or its patch is not
            there, or another.

    Example:
        >>> from trimvla.export import verify_bundle
        >>> result = verify_bundle("tabletop-trimmed", samples=1)  # against the weights beside it
        >>> result.ok, result.failed
        (True, [])
    """
    directory = bundles.resolve(bundle)
    with bundles.opened(directory) as (files, manifest), files.named() as place:
        found = patch_of(manifest, directory, patch)
        policy = under_plan(policy or checkpoint_beside(directory), manifest, directory, found)
        if backend is None:
            runners = proof_runners(place, manifest)
        else:
            runners = open_runners(place, manifest.stages, backend=backend, provider=provider)
        with closing_all(runners):
            files.check_unchanged()
            result = parity(
                policy,
                runners,
                samples=samples,
                seed=seed,
                precision=manifest.precision,
                clip=manifest.action.clip,
            )
    return msgspec.structs.replace(result, bundle=manifest.name)


@contextmanager
def closing_all(runners: Mapping[str, Runner]) -> Iterator[Mapping[str, Runner]]:
    """The runners, closed at the block's end whatever happens in it."""
    with ExitStack() as stack:
        for runner in runners.values():
            stack.callback(runner.close)
        yield runners


def under_plan(
    policy: nn.Module, manifest: Manifest, directory: Path, patch: Patch | None = None
) -> nn.Module:
    """The dense policy under a bundle's plan, with its patch where it has one (`patch_of`).

    Raises:
        BundleError: the bundle is of another policy.
        CheckpointError: the patch is not of this policy and plan.
    """
    cfg: Any = policy.cfg
    if parse_config(manifest.policy) != cfg:
        raise BundleError(
            f"bundle '{directory}': expected the config of policy '{cfg.name}', got another"
        )
    return under_patch(policy, manifest.plan, patch)


def patch_beside(directory: Path) -> Path:
    """Where the patch of a bundle lies."""
    return directory.with_name(f"{directory.resolve().name}{PATCH_SUFFIX}")


def patch_of(manifest: Manifest, directory: Path, named: Path | None = None) -> Patch | None:
    """The recovered weights that a bundle was exported with; None where it has none.

    Raises:
        CheckpointError: they do not lie beside the bundle or are others than the manifest's, or a
            patch is named and the bundle has none.
    """
    if manifest.patch is None:
        if named is not None:
            raise CheckpointError(
                f"bundle '{manifest.name}': expected no patch, for it was exported without one,"
                f" got {named}"
            )
        return None
    path = named or patch_beside(directory)
    if not path.is_file():
        raise CheckpointError(
            f"bundle '{manifest.name}': expected its patch (sha256 {manifest.patch.sha256[:12]}) at"
            f" {path} or as --patch FILE, got no file"
        )
    patch = read_patch(path)
    if patch.spec != manifest.patch:
        raise CheckpointError(
            f"{path}: expected the patch of bundle '{manifest.name}', sha256"
            f" {manifest.patch.sha256[:12]}, got {patch.spec.sha256[:12]}"
        )
    return patch


def checkpoint_beside(directory: Path) -> nn.Module:
    """The dense policy that a bundle was exported from, where its checkpoint lies beside it.

    Raises:
        CheckpointError: none lies there, or it does not fit its own config.
    """
    return load_own(beside(directory))


def beside(directory: Path) -> Path:
    """The file of weights beside a bundle.

    It is called like the bundle, or like the policy: bundles of one policy under several plans
    share it. CheckpointError where there is none.
    """
    directory = directory.resolve()
    name = str(bundles.load(directory).policy.get("name", directory.name))
    paths = [
        directory.with_name(f"{stem}.safetensors") for stem in dict.fromkeys((directory.name, name))
    ]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        wanted = " or ".join(str(path) for path in paths)
        raise CheckpointError(
            f"expected the policy of bundle '{directory.name}' in {wanted}, got no such file"
        )
    return found


def open_runners(
    directory: Path,
    stages: Mapping[str, StageSpec],
    *,
    backend: str = "onnxruntime",
    provider: str | None = None,
) -> dict[str, Runner]:
    """One runner per stage; where one does not open, those before it are closed."""
    opened: dict[str, Runner] = {}
    with ExitStack() as undo:
        for name, stage in stages.items():
            opened[name] = create(backend, directory / stage.file, stage, provider=provider)
            undo.callback(opened[name].close)
        undo.pop_all()
    return opened


def proof_runners(directory: Path, manifest: Manifest) -> dict[str, Runner]:
    """What a bundle is proved on: ONNX Runtime, which has to emulate bfloat16."""
    if manifest.precision != "bfloat16":
        return open_runners(directory, manifest.stages)
    return {
        name: EmulatedRunner(directory / stage.file, stage)
        for name, stage in manifest.stages.items()
    }


def parity(
    policy: nn.Module,
    runners: Mapping[str, Runner],
    *,
    samples: int,
    seed: int,
    precision: str = SHARPEST,
    clip: bool = True,
) -> Parity:
    """Compare the runners, which compute in a precision, with float32 torch: `verify_bundle`
    without the bundle's name.

    In a lower precision what is kept is compared as a set: the share of tokens that both keep,
    against 1. `clip`: whether the runtime cuts the sampled actions to [-1, 1].
    """
    guided = any(name.endswith(GUIDED_SUFFIX) for name in runners)
    stages = stages_of(policy, guided)
    plain = [stage for stage in stages if not is_guided(stage)]
    rows = comparisons(stages, precision)
    for key, inputs in sample_inputs(policy, samples, seed):
        tensors = dict(inputs)
        for stage, stage_inputs, expected in walk(policy, tensors, guided):
            got = runners[stage.name].run(as_arrays(stage_inputs))
            for name, value in expected.items():
                if name == KEPT and precision != SHARPEST:
                    rows[name].add(key, np.ones(1), shared(value.numpy(), got[name]))
                else:
                    rows[name].add(key, value, got[name])
        ends = tensors["actions"], run_chain(runners, plain, inputs)
        expected_end, got_end = (ends[0].clamp(-1, 1), ends[1].clip(-1, 1)) if clip else ends
        rows[END_TO_END].add(key, expected_end, got_end)
    ran = {name: runner.describe() for name, runner in runners.items()}
    against = f"torch {torch.__version__}, float32"
    return msgspec.structs.replace(report(rows), against=against, runners=ran)


def comparisons(stages: Sequence[Stage], precision: str) -> dict[str, Comparison]:
    """One for every boundary."""
    allowed = {**tolerances(stages), END_TO_END: SAMPLED_TOLERANCE}
    if precision == SHARPEST:
        return {name: ScaledComparison(name, tolerance) for name, tolerance in allowed.items()}
    return {name: LowerComparison.within(name, limit_of(precision, name)) for name in allowed}


def limit_of(precision: str, name: str) -> Limit:
    """How far an output may be from float32's in a lower precision; what lies between stages is
    as cognition is.
    """
    limits = LIMITS[precision]
    guided = "actions" if name == "guided_actions" else name
    return limits.get(guided, limits["cognition"])


def shared(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Share of the kept tokens that the other side keeps too, float64[1]."""
    return np.isin(expected, got).mean(keepdims=True).reshape(1)


def tolerances(stages: Sequence[Stage]) -> dict[str, float]:
    """How far each output may be from torch's; an index not at all."""
    pairs = ((name, stage.tolerance) for stage in stages for name in stage.outputs)
    return {name: 0.0 if name == KEPT else tolerance for name, tolerance in pairs}


def sample_inputs(
    policy: nn.Module, samples: int, seed: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Random inputs for every prompt bucket, or of a policy without instruction, each with a
    name.
    """
    cfg: Any = policy.cfg
    plan: Any = policy.plan
    family = family_of(cfg)
    generator = torch.Generator().manual_seed(seed)
    for bucket in prompt_lengths(cfg) or (0,):
        for index in range(samples):
            where = f"bucket {bucket}, " if bucket else ""
            yield (
                f"{where}sample {index}",
                family.example_inputs(cfg, plan, bucket, generator),
            )


def run_chain(
    runners: Mapping[str, Runner], stages: Sequence[Stage], inputs: Mapping[str, Tensor]
) -> np.ndarray:
    """The stages one after the other; actions float32[1, H, A]."""
    arrays = as_arrays(inputs)
    for stage in stages:
        arrays |= runners[stage.name].run({name: arrays[name] for name in stage.inputs})
    return arrays["actions"]


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays, by name."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}
