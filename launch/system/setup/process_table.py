"""The process table: every process that a section of a TOML file may be, one row each.

Knows names, modules and what follows when one ends; imports a module only when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from trimvla.launch.extras import install, missing_module
from trimvla.launch.system.setup.own_process import DRIVER
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own

# keys of an own process's section that are no options of it
OWN_FLAGS = {"matters": True, "restart": False}
ANYTHING = ("*",)  # that an own process may publish


@dataclass(frozen=True)
class Process:
    """One row: `module.run(config, run_dir, stop)` with `module.<config>` as its configuration."""

    name: str
    module: str
    config: str
    summary: str
    # the name that it reports under, whatever its section is called; `{name}`: the one in its
    # settings
    report: str
    extra: str = ""  # the optional install that it needs
    order: int = 1  # watchers 0, then what sees, thinks and moves, at last control
    matters: bool = True  # the robot holds while it is gone
    # control forgets stops and faults, a driver where it is: a person starts those again
    restart: bool = True
    silent_s: float = 20.0  # without a report for so long it hangs
    # and likewise if it is not ready so long after its start, unless its settings allow more
    start_s: float = 120.0
    # topics, besides its report; `{name}` as in `report`, `*` for any text
    publishes: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own: its name is module:attribute."""
        return not self.module and self.name != DRIVER

    @property
    def is_driver(self) -> bool:
        """Whether it is a driver, by its class."""
        return self.name == DRIVER

    def load(self) -> ModuleType:
        """The module, imported.

        Raises ConfigError where a package that it needs is not installed.
        """
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if (module := missing_module(error)) is None:
                raise
            raise ConfigError(
                f"process '{self.name}' needs {module}: {install(module, self.extra)}"
            ) from error


PROCESSES = {
    process.name: process
    for process in (
        Process(
            "camera",
            "trimvla.runtime.cameras.process",
            "CameraConfig",
            "a device, file or test image -> frames",
            "camera-{name}",
            publishes=("{name}/color",),
        ),
        Process(
            "policy",
            "trimvla.runtime.inference.process",
            "PolicyConfig",
            "frames and task -> action chunks",
            "policy",
            silent_s=60.0,
            start_s=150.0,
            publishes=("chunk", "refusal"),
        ),
        Process(
            "control",
            "trimvla.runtime.control.process",
            "ControlConfig",
            "chunks -> commands, at a fixed rate",
            "control",
            order=2,
            restart=False,
            silent_s=5.0,
            publishes=("command",),
        ),
        Process(
            "recorder",
            "trimvla.runtime.record.recorder",
            "RecorderConfig",
            "all of it -> an MCAP file",
            "recorder",
            "record",
            order=0,
            matters=False,
            restart=False,
        ),
        Process(
            "metrics",
            "trimvla.runtime.record.metrics",
            "MetricsConfig",
            "reports -> a Prometheus page",
            "metrics",
            "metrics",
            order=0,
            matters=False,
        ),
        Process(
            "sim-robot",
            "trimvla.sim.robots.robot",
            "RobotConfig",
            "commands -> a simulated world",
            "robot",
            "sim",
            restart=False,
            publishes=("robot/state", "sim/state", "episode"),
        ),
        Process(
            "sim-camera",
            "trimvla.sim.robots.camera",
            "SimCameraConfig",
            "the simulated world -> frames",
            "camera-{name}",
            "sim",
            publishes=("{name}/color",),
        ),
        Process(
            "sim-arm",
            "trimvla.sim.robots.arm",
            "ArmConfig",
            "commands -> an arm without a world",
            "arm",
            restart=False,
            publishes=("robot/state",),
        ),
        Process(
            DRIVER,
            "trimvla.runtime.drivers.driver",
            "DriverConfig",
            "a robot's driver: `kind` is one of those below, or your own as `module:Class`",
            "driver",
            restart=False,
            publishes=("robot/state",),
        ),
        Process(
            "faulty-camera",
            "trimvla.sim.robots.faults",
            "FaultyCameraConfig",
            "a test image -> frames, with faults",
            "camera-{name}",
            publishes=("{name}/color",),
        ),
        Process(
            "faulty-policy",
            "trimvla.sim.robots.faulty_policy",
            "FaultyPolicyConfig",
            "a policy with faults",
            "policy",
            publishes=("chunk", "refusal"),
        ),
    )
}


def row_of(name: str, section: Mapping[str, Any]) -> Process:
    """The table's row for a section. Raises ConfigError where there is none."""
    kind = section.get("process", name)
    if isinstance(kind, str) and kind in PROCESSES and kind != DRIVER:
        return PROCESSES[kind]
    if not isinstance(kind, str) or not (is_own(kind) or kind == DRIVER):
        known = f"one of {', '.join(PROCESSES)}, or module:attribute of your own"
        raise ConfigError(f"{name}: expected 'process' as {known}, got {kind!r}")
    flags = {key: section.get(key, default) for key, default in OWN_FLAGS.items()}
    if wrong := [key for key, value in flags.items() if not isinstance(value, bool)]:
        raise ConfigError(
            f"{name}: expected true or false for '{wrong[0]}', got {flags[wrong[0]]!r}"
        )
    report = name.replace("{", "{{").replace("}", "}}")  # a name for `str.format`
    publishes = PROCESSES[DRIVER].publishes if kind == DRIVER else ANYTHING
    return Process(kind, "", "", "a process of your own", report, publishes=publishes, **flags)
