"""Who plays in `trimvla eval`, and how long each is taken to think, as measured or as estimated.

Knows bundles by name and latencies by the words of `--latency`; plays nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from trimvla.launch.evaluation.results import Estimate
from trimvla.policies.families import family_of, parse_config
from trimvla.policies.sizes.roofline import DEVICES, Floors, find_device, floors_ms
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.sim.actor import EXPERT, noise_shape, observe
from trimvla.sim.evaluation.latency import Latency, constant, parse
from trimvla.sim.evaluation.rollout import PolicyOrExpert, Setting

# of a manifest's `action`: alike, or it is another robot
TASK_FIELDS = ("horizon", "dim", "control_hz", "kinds")
MEASURED = "measured"
# of a measurement
CALLS = 40
WARMUP = 5


@dataclass(frozen=True)
class Bundles:
    """Opens policies, by role and in the order in which they play; travels to other processes."""

    names: Mapping[str, str]
    backend: str
    threads: int
    provider: str | None = None
    guided: bool = False
    """With the stage for real-time chunking."""

    @contextmanager
    def __call__(self) -> Iterator[dict[str, PolicyOrExpert]]:
        """Load all, and close them in the end."""
        with ExitStack() as stack:
            how = {
                "backend": self.backend,
                "provider": self.provider,
                "threads": self.threads,
                "guided": self.guided,
            }
            load = partial(Policy.load, **how)
            yield {
                role: EXPERT if name == EXPERT else stack.enter_context(closing(load(name)))
                for role, name in self.names.items()
            }


def check_same_task(names: Sequence[str]) -> None:
    """ConfigError where bundles do not drive the same robot as the first."""
    actions = [
        (name, bundles.load(bundles.resolve(name)).action) for name in names if name != EXPERT
    ]
    for (name, action), field in product(actions, TASK_FIELDS):
        reference, first = actions[0]
        expected = getattr(first, field)
        got = getattr(action, field)
        if expected != got:
            raise ConfigError(
                f"expected bundles for the same task: 'action.{field}' is {expected} in"
                f" '{reference}', got {got} in '{name}'"
            )


def identity(name: str) -> str:
    """What a bundle computes, wherever it lies: sha256 of its manifest's table of files,
    shortened.
    """
    if name == EXPERT:
        return EXPERT
    files = bundles.load(bundles.resolve(name)).files
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]


def resolve_latency(
    word: str, names: Mapping[str, str], policies: Bundles, setting: Setting
) -> dict[str, Latency]:
    """One condition: role -> its latency.

    `measured`, `orin`, `thor`, `orin:0.5`, or what `sim.evaluation.latency` knows.
    """
    device, _, share = word.partition(":")
    if device in DEVICES:
        attained = _share(word, share)
        return {
            role: constant(word, round(estimate(name, device, attained).ms, 3))
            for role, name in names.items()
        }
    if word == MEASURED:
        with policies() as opened:
            return {
                role: Latency(word, "trace", measure(policy, setting))
                for role, policy in opened.items()
            }
    latency = parse(word)
    return dict.fromkeys(names, latency)


def _share(word: str, share: str) -> float:
    try:
        return float(share or 1)
    except ValueError:
        raise ConfigError(
            f"expected a device and the share that it attains, as in 'orin:0.5', got {word!r}"
        ) from None


def estimate(name: str, device: str, attained: float = 1.0) -> Estimate:
    """The roofline of a bundle, and of the policy that it stands for on a robot: a bundle of the
    CogACT shape for CogACT-Base under the same plan, any other for itself.

    An estimate, and a lower bound; see `policies.roofline`.
    """
    manifest = bundles.load(bundles.resolve(name))
    found = find_device(device)
    cfg = config_of(manifest)
    family = family_of(cfg)
    if family.estimate is not None:
        floors = family.estimate(cfg, manifest.plan, found, attained)
    else:
        own = floors_ms(family.cost(cfg, manifest.plan), found, attained)["total"]
        floors = Floors(cfg.name, own, own)
    return Estimate(
        bundle=name,
        estimate=True,
        device=found,
        attained=attained,
        scale=floors.scale,
        ms=floors.ms,
        bundle_ms=floors.own_ms,
    )


def config_of(manifest: Manifest) -> Any:  # noqa: ANN401
    """The policy's sizes; ConfigError where the manifest does not have them."""
    if not manifest.policy:
        raise ConfigError(
            "expected a bundle that says its policy's sizes, for an estimate; got"
            f" '{manifest.name}' without 'policy' in its manifest"
        )
    return parse_config(manifest.policy)


def measure(policy: PolicyOrExpert, setting: Setting) -> tuple[float, ...]:
    """Milliseconds of calls on the first image of the task, one after the other, on this
    machine.
    """
    if isinstance(policy, str):
        raise ConfigError("expected a bundle for '--latency measured': the expert does not think")
    with closing(setting.make_task()) as opened:
        episode = opened.episode(0, official=opened.official > 0)
        observation = observe(episode, policy)
        episode.close()
    noise = np.zeros(noise_shape(policy), np.float32)
    took = []
    for _ in range(WARMUP + CALLS):
        started = time.perf_counter_ns()
        policy.infer(observation, noise=noise)
        took.append((time.perf_counter_ns() - started) / 1e6)
    return tuple(round(ms, 3) for ms in took[WARMUP:])
