"""Whether policies, control loop and drivers of a system mean the same by an action, and whether
policies find their cameras and state, before any process starts.

Knows sections and what their modules declare (`action_meanings`, `robot_inputs`, `description`);
opens no bundle but its manifest. What a robot does not declare shows at its first message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimvla.runtime.bundle.action_meaning import ActionMeaning, describe, disagreement
from trimvla.runtime.bundle.description import (
    Description,
    unlike_bundle,
    unlike_control,
    unlike_state,
)
from trimvla.runtime.control.controller import ControlConfig
from trimvla.runtime.drivers.driver import DriverConfig
from trimvla.runtime.errors import ConfigError, ObservationError


def check_actions(configs: Mapping[str, tuple[Any, Any]]) -> None:
    """Compare every policy of a system, all rungs of a ladder among them, with its control loop.

    Args:
        configs: by section, the module of its process and its configuration.

    Raises:
        ConfigError: kinds or rates differ; it shows both sides of each.
        BundleError: a bundle's manifest cannot be read.
    """
    controls = {
        name: config.meaning
        for name, (_, config) in configs.items()
        if isinstance(config, ControlConfig)
    }
    drivers = {
        name: config.kinds
        for name, (module, config) in configs.items()
        if isinstance(config, DriverConfig) and not hasattr(module, "description")
    }
    problems = [
        f"{section}: {problem} of '{bundle}': kinds and rates are set under '{control}', and must"
        " be the bundle's"
        for section, (module, config) in configs.items()
        if controls and hasattr(module, "action_meanings")
        for bundle, got in module.action_meanings(config).items()
        for control, expected in controls.items()
        if (problem := disagreement(expected, got))
    ]
    problems += [
        f"{section}: expected kinds {describe(expected.kinds)}, as control commands under"
        f" '{control}', got {describe(kinds)}"
        for section, kinds in drivers.items()
        for control, expected in controls.items()
        if kinds != expected.kinds
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def check_drivers(configs: Mapping[str, tuple[Any, Any]]) -> None:
    """Compare every driver's description with the control loop, and with every policy's actions
    and state: names, units, order, kinds, limits and rate.

    What only the connected robot knows is compared by control, before it arms.

    Args:
        configs: by section, the module of its process and its configuration.

    Raises:
        ConfigError: what differs; shows both tables. All of it at once.
        BundleError: a bundle's manifest cannot be read.
    """
    problems: list[str] = []
    for section, (module, config) in configs.items():
        robot = _description(module, config)
        if robot is None:
            continue
        for name, (other, settings) in configs.items():
            if isinstance(settings, ControlConfig):
                limits = settings.limits
                problem = unlike_control(robot, settings.meaning, limits.low, limits.high)
                problems += [f"{section}: {problem} of '{name}'"] if problem else []
            if hasattr(other, "action_meanings"):
                problems += [
                    f"{section}: {problem} of bundle '{bundle}'"
                    for bundle, got in other.action_meanings(settings).items()
                    if (problem := unlike_bundle(robot, got))
                ]
                problem = unlike_state(robot, other.robot_inputs(settings).state)
                problems += [f"{section}: {problem} by the policy of '{name}'"] if problem else []
    if problems:
        raise ConfigError("; ".join(problems))


def _description(module: Any, config: Any) -> Description | None:  # noqa: ANN401 - a module
    """A section's robot as its driver describes it by its settings; None for what is no driver."""
    return module.description(config) if hasattr(module, "description") else None


def check_inputs(configs: Mapping[str, tuple[Any, Any]]) -> None:
    """Compare every policy of a system with the cameras that it is given and the drivers' states.

    Args:
        configs: by section, the module of its process and its configuration.

    Raises:
        ConfigError: a camera too few or too many, rungs that look at different things, or a state
            of another length or order; all of them at once.
        BundleError: a bundle's manifest cannot be read.
    """
    robots = {name: _state(module, config) for name, (module, config) in configs.items()}
    problems: list[str] = []
    for section, (module, config) in configs.items():
        if not hasattr(module, "robot_inputs"):
            continue
        try:
            inputs = module.robot_inputs(config)
        except ConfigError as error:
            problems.append(f"{section}: {error}")
            continue
        for robot, (names, count) in robots.items():
            try:
                inputs.check_state(names, count)
            except ObservationError as error:
                problems.append(f"{robot}{'.state_names' if names else ''}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))


def _state(module: Any, config: Any) -> tuple[tuple[str, ...], int]:  # noqa: ANN401 - a module
    """What a section's robot calls its positions, and how many there are; 0 where that is not known
    before it is connected, or it is no robot's.
    """
    robot = _description(module, config)
    if robot is not None:
        return robot.state_names, len(robot.state)
    names = config.state_names if isinstance(config, DriverConfig) else ()
    return names, len(names)


def check_task(configs: Mapping[str, tuple[Any, Any]], instruction: str) -> None:
    """Compare what the robot is to do with the prompts that its policies can read.

    Raises:
        PromptError: it is longer than one of them reads; names the bundle.
    """
    for module, config in configs.values():
        if hasattr(module, "check_instruction"):
            module.check_instruction(config, instruction)


def check_bundle(name: str, got: ActionMeaning, expected: ActionMeaning, what: str) -> None:
    """Raise ConfigError where a bundle's actions are not what something else was made for."""
    if problem := disagreement(expected, got):
        raise ConfigError(f"{what}: {problem} of '{name}'")
