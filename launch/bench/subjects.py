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
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import BackendError, CheckpointError, ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation


@dataclass(frozen=True)
class Asked:
    """What every policy is given: an image uint8[h, w, 3] on each of its cameras, an
    instruction, a state of zeros.
    """

    picture: np.ndarray
    instruction: str

    def of(self, policy: Policy) -> Observation:
        """As this policy takes it."""
        manifest = policy.manifest
        state = None if manifest.state is None else np.zeros(manifest.state.dim)
        return Observation(
            dict.fromkeys(manifest.images.names, self.picture), self.instruction, state
        )


@dataclass(frozen=True)
class Party:
    """One bundle of the comparison. `dense`: the others are compared with it."""

    name: str
    directory: Path
    policy: Policy
    dense: bool


def open_parties(  # noqa: PLR0917 - as `open_party`
    bundle: str,
    against: str | None,
    backend: str,
    threads: int,
    stack: ExitStack,
    provider: str | None = None,
) -> list[Party]:
    """The dense bundle, where there is one to compare with, and the bundle; `stack` closes them.

    Raises:
        BundleError: one cannot be loaded.
        ConfigError: what it is compared with is not dense.
    """
    parties = [] if against is None else [open_party(against, backend, threads, stack, provider)]
    if against is not None and not parties[0].dense:
        raise ConfigError(
            f"expected a dense bundle for --against, got '{against}', which has a plan"
        )
    party = open_party(bundle, backend, threads, stack, provider)
    if against is None:
        return [party]
    name = parties[0].name
    dense = replace(parties[0], name=f"{name} (dense)" if name == party.name else name)
    return [dense, replace(party, dense=False)]


def open_party(
    bundle: str, backend: str, threads: int, stack: ExitStack, provider: str | None = None
) -> Party:
    """A bundle by itself."""
    policy = Policy.load(bundle, backend=backend, provider=provider, threads=threads)
    stack.callback(policy.close)
    return Party(policy.manifest.name, bundles.resolve(bundle), policy, policy.manifest.plan.dense)


def own_subject(party: Party, socket: SocketPolicy, backend: str, asked: Asked) -> Subject:
    """The bundle as it runs on a robot: all four layers."""
    calls = (*policy_calls(party.policy, asked.of(party.policy)), socket.turn)
    return Subject(party.name, party.name, backend, party.dense, calls)


def named_subjects(
    names: Sequence[str], threads: int, asked: Asked, stack: ExitStack
) -> list[tuple[Subject, Party]]:
    """More bundles, each on the backend behind its "@": L0 to L2. `stack` closes them.

    Their floors are not known: they may compute in another precision than the one that the peak was
    measured in.

    Raises:
        ConfigError: a name without a backend.
        BundleError, BackendError: one cannot be loaded, or not run there as asked.
    """
    found: list[tuple[Subject, Party]] = []
    for name in names:
        bundle, _, backend = name.rpartition("@")
        if not bundle or not backend:
            raise ConfigError(f"expected BUNDLE@BACKEND for --also, got {name!r}")
        party = open_party(bundle, backend, threads, stack)
        reference = party.dense and party.policy.manifest.precision == "float32"
        calls = policy_calls(party.policy, asked.of(party.policy))
        title = f"{party.name}@{backend}"
        found.append((Subject(title, title, backend, reference, calls), party))
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
    parties: Sequence[Party],
    backends: Sequence[str],
    threads: int,
    asked: Asked,
    stack: ExitStack,
    *,
    selector: str | None = None,
) -> Iterator[Subject]:
    """The same policies in torch: L0 to L2.

    The first party's checkpoint serves those that have none.

    `selector` is the user's own, which the plan of the last party names.

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
    use_named_selector(selector, parties[-1].policy.manifest)
    stack.enter_context(torch_threads(threads))
    models = [
        load_model(party.directory, party.policy.manifest, parties[0].directory)
        for party in parties
    ]
    for backend in backends:
        for party, model in zip(parties, models, strict=True):
            twin = on_torch(party.policy, model, backend)
            check_same(party.policy, twin, asked.of(twin))
            calls = policy_calls(twin, asked.of(twin))
            yield Subject(f"{party.name}@{backend}", party.name, backend, party.dense, calls)


UNMEASURED = (ConfigError, CheckpointError, BackendError)
"""What `torch_subjects` raises."""


def party_floors(party: Party, asked: Asked, machine: Machine) -> dict[str, Floor]:
    """The floor of every stage and of all of them.

    Raises ConfigError where the manifest does not have the sizes.
    """
    manifest = party.policy.manifest
    prompt = prompt_length(stage_inputs(party.policy, asked.of(party.policy)))
    return floors(PolicyConfig.from_dict(manifest.policy), manifest.plan, prompt, machine)
