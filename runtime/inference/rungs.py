"""The bundles that the process `policy` runs: their manifests, and the policies, loaded and warm.

Knows bundles by their names in the configuration; opens no socket.
"""

from __future__ import annotations

from trimvla.runtime.backends.tensorrt import engine_folders
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_meaning import ActionMeaning, meaning_of
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.bus.topics import color
from trimvla.runtime.errors import PromptError
from trimvla.runtime.inference.policy import Policy, open_inputs
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.robot_inputs import RobotInputs
from trimvla.runtime.inference.scheduler import check_rungs, warm_up
from trimvla.runtime.inference.start import Step
from trimvla.runtime.preprocess.observation import blank_observation


def action_meanings(config: PolicyConfig) -> dict[str, ActionMeaning]:
    """What the actions of every bundle mean, read from its manifest alone, before anything is
    loaded or started.

    Raises BundleError.
    """
    return {name: meaning_of(manifest.action) for name, manifest in manifests_of(config).items()}


def robot_inputs(config: PolicyConfig) -> RobotInputs:
    """Which of the robot's cameras and numbers the policy sees, read from the manifests alone.

    Raises BundleError, and ConfigError where bundles and configuration do not go together.
    """
    manifests = manifests_of(config)
    check_rungs(manifests)
    return RobotInputs.of(list(manifests.values()), config)


def needs(config: PolicyConfig) -> tuple[str, ...]:
    """The topics without which the policy never acts, besides the task: of its cameras, and of the
    state where it reads one.

    Raises as `robot_inputs`.
    """
    return topics_of(config, robot_inputs(config))


def topics_of(config: PolicyConfig, inputs: RobotInputs) -> tuple[str, ...]:
    """The same, where the inputs are known."""
    reads_state = inputs.budget(config.budget).state_s is not None
    return (*map(color, config.all_cameras), *(("robot/state",) if reads_state else ()))


def check_instruction(config: PolicyConfig, instruction: str) -> None:
    """Whether every bundle can read an instruction, by its tokenizer, before anything is loaded or
    started.

    Raises PromptError, which names the bundle, and BundleError.
    """
    for name, manifest in manifests_of(config).items():
        try:
            open_inputs(name).tensors(blank_observation(manifest, instruction))
        except PromptError as error:
            raise PromptError(f"bundle '{manifest.name}': {error}") from None


def manifests_of(config: PolicyConfig) -> dict[str, Manifest]:
    """Of every bundle by its name, the best first. Raises BundleError."""
    names = config.rungs or (config.bundle,)
    return {name: bundles.load(bundles.resolve(name), verify_hashes=False) for name in names}


def load_and_warm_up(config: PolicyConfig, step: Step) -> tuple[dict[str, Policy], list[float]]:
    """All bundles by name, and what a call of each takes [s].

    Raises what `load_rungs` and the calls raise.
    """
    step(f"loading {', '.join(config.rungs or (config.bundle,))}")
    policies = load_rungs(config)
    costs_s: list[float] = []
    for name, policy in policies.items():
        step(f"warming up {name}")
        costs_s.append(warm_up(policy, config.rtc.enabled))
    return policies, costs_s


def load_rungs(config: PolicyConfig) -> dict[str, Policy]:
    """The bundles of the ladder, or the one that there is, by name.

    Raises BundleError, BackendError or ConfigError.
    """
    policies = {
        name: Policy.load(
            name,
            backend=config.backend,
            provider=config.provider,
            threads=config.threads,
            engines=None if config.engines is None else engine_folders.named(config.engines),
            guided=config.rtc.enabled,
        )
        for name in config.rungs or (config.bundle,)
    }
    check_rungs({name: policy.manifest for name, policy in policies.items()})
    return policies
