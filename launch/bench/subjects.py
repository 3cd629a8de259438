"""Who takes part in a benchmark: the bundles as they run on a robot, and their twins in torch.

Finds bundles and checkpoints, starts processes, notes what had to be left out. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trimvla.launch.bench.floor import Floor, Machine, floors
from trimvla.launch.bench.socket_layer import SocketPolicy
from trimvla.launch.bench.turns import Subject, policy_calls, prompt_length, stage_inputs
from trimvla.launch.extras import install, missing_module
from trimvla.policies.families import parse_config
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import BackendError, CheckpointError, ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation


@dataclass(frozen=True)
class BenchInput:
    """What every policy is given: an image uint8[h, w, 3] on each of its cameras, an
    instruction, a state of zeros.
    """

    image: np.ndarray
    instruction: str

    def of(self, policy: Policy) -> Observation:
        """As this policy takes it."""
        manifest = policy.manifest
        state = None if manifest.state is None else np.zeros(manifest.state.dim)
        return Observation(
            dict.fromkeys(manifest.images.names, self.image), self.instruction, state
        )


@dataclass(frozen=True)
class BenchBundle:
    """One bundle of the comparison. `dense`: the others are compared with it."""

    name: str
    directory: Path
    policy: Policy
    dense: bool


def open_bench_bundles(  # noqa: PLR0917 - as `open_bench_bundle`
    bundle: str,
    against: str | None,
    backend: str,
    threads: int,
    stack: ExitStack,
    provider: str | None = None,
) -> list[BenchBundle]:
    """The dense bundle, where there is one to compare with, and the bundle; `stack` closes them.

    Raises:
        BundleError: one cannot be loaded.
        ConfigError: what it is compared with is not dense.
    """
    entries = (
        [] if against is None else [open_bench_bundle(against, backend, threads, stack, provider)]
    )
    if against is not None and not entries[0].dense:
        raise ConfigError(
            f"expected a dense bundle for --against, got '{against}', which has a plan"
        )
    entry = open_bench_bundle(bundle, backend, threads, stack, provider)
    if against is None:
        return [entry]
    name = entries[0].name
    dense = replace(entries[0], name=f"{name} (dense)" if name == entry.name else name)
    return [dense, replace(entry, dense=False)]


def open_bench_bundle(
    bundle: str, backend: str, threads: int, stack: ExitStack, provider: str | None = None
) -> BenchBundle:
    """A bundle by itself."""
    policy = Policy.load(bundle, backend=backend, provider=provider, threads=threads)
    stack.callback(policy.close)
    return BenchBundle(
        policy.manifest.name, bundles.resolve(bundle), policy, policy.manifest.plan.dense
    )


def own_subject(
    entry: BenchBundle, socket: SocketPolicy, backend: str, given: BenchInput
) -> Subject:
    """The bundle as it runs on a robot: all four layers."""
    calls = (*policy_calls(entry.policy, given.of(entry.policy)), socket.turn)
    return Subject(entry.name, entry.name, backend, entry.dense, calls)


def named_subjects(
    names: Sequence[str], threads: int, given: BenchInput, stack: ExitStack
) -> list[tuple[Subject, BenchBundle]]:
    """More bundles, each on the backend behind its "@": L0 to L2. `stack` closes them.

    Their floors are not known: they may compute in another precision than the one that the peak was
    measured in.

    Raises:
        ConfigError: a name without a backend.
        BundleError, BackendError: one cannot be loaded, or not run there as requested.
    """
    found: list[tuple[Subject, BenchBundle]] = []
    for name in names:
        bundle, _, backend = name.rpartition("@")
        if not bundle or not backend:
            raise ConfigError(f"expected BUNDLE@BACKEND for --also, got {name!r}")
        entry = open_bench_bundle(bundle, backend, threads, stack)
        reference = entry.dense and entry.policy.manifest.precision == "float32"
        calls = policy_calls(entry.policy, given.of(entry.policy))
        title = f"{entry.name}@{backend}"
        found.append((Subject(title, title, backend, reference, calls), entry))
    return found


def with_dense(names: Sequence[str], against: str | None, measured: str) -> list[str]:
    """The names, and first the dense bundle on each of their backends but the one on which it is
    measured anyway.
    """
    backends = dict.fromkeys(name.rpartition("@")[2] for name in names if "@" in name)
    dense = (
        [f"{against}@{backend}" for backend in backends if backend != measured] if against else []
    )
    return list(dict.fromkeys([*dense, *names]))


def torch_subjects(
    entries: Sequence[BenchBundle],
    backends: Sequence[str],
    threads: int,
    given: BenchInput,
    stack: ExitStack,
    *,
    selector: str | None = None,
) -> Iterator[Subject]:
    """The same policies in torch: L0 to L2.

    The first entry's checkpoint serves those that have none.

    `selector` is the user's own, which the plan of the last entry names.

    Raises:
        ConfigError: torch is not installed, or a plan names a selector that nobody named here.
        CheckpointError: there are no weights.
        BackendError: torch cannot compile a stage, or gives other actions.
    """
    try:
        from trimvla.launch.bench.torch_twin import check_same, load_model, on_torch, torch_threads
        from trimvla.launch.exporting.named_plan import use_named_selector
    except ModuleNotFoundError as error:
        if (module := missing_module(error)) is None:
            raise
        raise ConfigError(f"{module} is not installed: {install(module, 'export')}") from error
    use_named_selector(selector, entries[-1].policy.manifest)
    stack.enter_context(torch_threads(threads))
    models = [
        load_model(entry.directory, entry.policy.manifest, entries[0].directory)
        for entry in entries
    ]
    for backend in backends:
        for entry, model in zip(entries, models, strict=True):
            twin = on_torch(entry.policy, model, backend)
            check_same(entry.policy, twin, given.of(twin))
            calls = policy_calls(twin, given.of(twin))
            yield Subject(f"{entry.name}@{backend}", entry.name, backend, entry.dense, calls)


UNMEASURED = (ConfigError, CheckpointError, BackendError)
"""What `torch_subjects` raises."""


def bundle_floors(entry: BenchBundle, given: BenchInput, machine: Machine) -> dict[str, Floor]:
    """The floor of every stage and of all of them.

    Raises ConfigError where the manifest does not have the sizes.
    """
    manifest = entry.policy.manifest
    seen = stage_inputs(entry.policy, given.of(entry.policy))
    prompt = None if manifest.prompt is None else prompt_length(seen)
    return floors(parse_config(manifest.policy), manifest.plan, prompt, machine)
