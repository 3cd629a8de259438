"""A bundle against torch: the same inputs through both, compared at every boundary.

Each stage is fed with torch's own inputs, so a difference points at the stage that made it;
`end_to_end` runs the bundle's stages one after the other, on the actions as the runtime clips them.
Knows runners only by their contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from trimvla.export.compare import Comparison, Limit, LowerComparison, ScaledComparison, report
from trimvla.export.graphs.stages import (
    GUIDED,
    SAMPLED_TOLERANCE,
    STAGES,
    example_inputs,
    stages_under,
    walk,
)
from trimvla.export.parity import Parity
from trimvla.export.precision.emulate_bf16 import EmulatedRunner
from trimvla.policies.cogact.checkpoint import load as load_checkpoint
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.backends.runner import Runner, create
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import Manifest, StageSpec
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import BundleError, CheckpointError

END_TO_END = "end_to_end"
KEPT = "kept"
SHARPEST = "float32"
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
worst of sampled actions says little (see `SAMPLED_TOLERANCE`): noise between two modes goes to
either, and a whole chunk differs.
"""


def verify_bundle(
    bundle: str | Path,
    policy: CogAct | None = None,
    *,
    backend: str | None = None,
    provider: str | None = None,
    samples: int = 4,
    seed: int = 1,
) -> Parity:
    """Compare a bundle with torch on random inputs of every prompt bucket.

    Args:
        bundle: its path, or the name of a shipped one.
        policy: the dense policy it was exported from; when left out, the checkpoint beside the
            bundle is loaded (`<bundle>.safetensors`, or `<policy>.safetensors`).
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
        CheckpointError: no policy is given and none lies beside the bundle.

    Example:
        >>> from trimvla.export import verify_bundle
        >>> result = verify_bundle("tabletop-trimmed", samples=1)  # against the weights beside it
        >>> result.ok, result.failed
        (True, [])
    """
    directory = bundles.resolve(bundle)
    with bundles.opened(directory) as (files, manifest), files.named() as place:
        policy = policy or checkpoint_beside(directory)
        if PolicyConfig.from_dict(manifest.policy) != policy.cfg:
            raise BundleError(
                f"bundle '{directory}': expected the config of policy '{policy.cfg.name}', got"
                " another"
            )
        policy = trim(policy, manifest.plan)
        if backend is None:
            runners = proof_runners(place, manifest)
        else:
            runners = open_runners(place, manifest.stages, backend=backend, provider=provider)
        with closing_all(runners):
            files.check_unchanged()
            result = parity(
                policy, runners, samples=samples, seed=seed, precision=manifest.precision
            )
    return msgspec.structs.replace(result, bundle=manifest.name)


@contextmanager
def closing_all(runners: Mapping[str, Runner]) -> Iterator[Mapping[str, Runner]]:
    """The runners, closed at the block's end whatever happens in it."""
    with ExitStack() as stack:
        for runner in runners.values():
            stack.callback(runner.close)
        yield runners


def checkpoint_beside(directory: Path) -> CogAct:
    """The dense policy that a bundle was exported from, where its checkpoint lies beside it.

    It is called like the bundle, or like the policy: bundles of one policy under several plans
    share it.
    """
    directory = directory.resolve()
    names = dict.fromkeys(
        (directory.name, str(bundles.load(directory).policy.get("name", directory.name)))
    )
    paths = [directory.with_name(f"{name}.safetensors") for name in names]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        wanted = " or ".join(str(path) for path in paths)
        raise CheckpointError(
            f"expected the policy of bundle '{directory.name}' in {wanted}, got no such file"
        )
    return load_checkpoint(found)


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
    policy: CogAct,
    runners: Mapping[str, Runner],
    *,
    samples: int,
    seed: int,
    precision: str = SHARPEST,
) -> Parity:
    """Compare the runners, which compute in a precision, with float32 torch: `verify_bundle`
    without the bundle's name.

    In a lower precision what is kept is compared as a set: the share of tokens that both keep,
    against 1.
    """
    guided = GUIDED.name in runners
    rows = comparisons(policy.plan, precision, guided)
    for key, inputs in sample_inputs(policy.cfg, samples, seed):
        tensors = dict(inputs)
        for stage, stage_inputs, expected in walk(policy, tensors, guided):
            got = runners[stage.name].run(as_arrays(stage_inputs))
            for name, value in expected.items():
                if name == KEPT and precision != SHARPEST:
                    rows[name].add(key, np.ones(1), shared(value.numpy(), got[name]))
                else:
                    rows[name].add(key, value, got[name])
        rows[END_TO_END].add(
            key, tensors["actions"].clamp(-1, 1), run_chain(runners, inputs).clip(-1, 1)
        )
    ran = {name: runner.describe() for name, runner in runners.items()}
    against = f"torch {torch.__version__}, float32"
    return msgspec.structs.replace(report(rows), against=against, runners=ran)


def comparisons(plan: Plan, precision: str, guided: bool = False) -> dict[str, Comparison]:
    """One for every boundary."""
    allowed = {**tolerances(plan, guided), END_TO_END: SAMPLED_TOLERANCE}
    if precision == SHARPEST:
        return {name: ScaledComparison(name, tolerance) for name, tolerance in allowed.items()}
    return {name: LowerComparison.within(name, LIMITS[precision][name]) for name in allowed}


def shared(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Share of the kept tokens that the other side keeps too, float64[1]."""
    return np.isin(expected, got).mean(keepdims=True).reshape(1)


def tolerances(plan: Plan, guided: bool = False) -> dict[str, float]:
    """How far each output may be from torch's; an index not at all."""
    pairs = (
        (name, stage.tolerance) for stage in stages_under(plan, guided) for name in stage.outputs
    )
    return {name: 0.0 if name == KEPT else tolerance for name, tolerance in pairs}


def sample_inputs(
    cfg: PolicyConfig, samples: int, seed: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Random inputs for every prompt bucket, each with a name."""
    generator = torch.Generator().manual_seed(seed)
    for bucket in cfg.prompt.buckets:
        for index in range(samples):
            yield f"bucket {bucket}, sample {index}", example_inputs(cfg, bucket, generator)


def run_chain(runners: Mapping[str, Runner], inputs: Mapping[str, Tensor]) -> np.ndarray:
    """The stages one after the other; actions float32[1, H, A]."""
    arrays = as_arrays(inputs)
    for stage in STAGES:
        arrays |= runners[stage.name].run({name: arrays[name] for name in stage.inputs})
    return arrays["actions"]


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays, by name."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}
