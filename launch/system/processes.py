"""The process table, and how a TOML file becomes running processes: one section a process.

A section's name is the process's name; `process = "..."` inside names which row of the table it is,
where the two differ, or names a function of the user's own. Knows names, modules and
configurations; imports a module only to start or check its process.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from trimvla.launch.extras import install, missing_module
from trimvla.launch.system.action_check import (
    check_actions,
    check_drivers,
    check_inputs,
    check_task,
)
from trimvla.launch.system.child import GRACE_S, Program
from trimvla.launch.system.config import build, decode_file
from trimvla.launch.system.own_process import DRIVER, OwnDriver, OwnProcess
from trimvla.launch.system.run_dirs import lock
from trimvla.runtime.bus.run_dir import write_file

# also of a log file, and of a unit of systemd
from trimvla.runtime.bus.topics import CAMERA_NAME as PROCESS_NAME
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own

Sections = dict[str, dict[str, Any]]
"""Process name -> its settings, as they stand in the file."""
CONFIGS = Path(__file__).parent.parent / "configs"
# keys of an own process's section that are no options of it
OWN_FLAGS = {"matters": True, "restart": False}
# likewise of a driver's: its class, and the Python of its environment
DRIVER_KEYS = ("kind", "python")
# settings by which a process itself gives up
START_OPTIONS = ("start_timeout_s", "ready_timeout_s")
START_MARGIN_S = 30.0  # for its imports, and for its own error to come first
SYSTEM_FILE = "system.msgpack"  # in the run directory; not JSON, which has no infinity


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
        ),
        Process(
            "policy",
            "trimvla.runtime.inference.process",
            "PolicyConfig",
            "frames and task -> action chunks",
            "policy",
            silent_s=60.0,
            start_s=150.0,
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
        ),
        Process(
            "sim-camera",
            "trimvla.sim.robots.camera",
            "SimCameraConfig",
            "the simulated world -> frames",
            "camera-{name}",
            "sim",
        ),
        Process(
            "sim-arm",
            "trimvla.sim.robots.arm",
            "ArmConfig",
            "commands -> an arm without a world",
            "arm",
            restart=False,
        ),
        Process(
            DRIVER,
            "trimvla.runtime.drivers.driver",
            "DriverConfig",
            "a robot's driver, by its class: `kind`, as `module:Class`",
            "driver",
            restart=False,
        ),
        Process(
            "faulty-camera",
            "trimvla.sim.robots.faults",
            "FaultyCameraConfig",
            "a test image -> frames, with faults",
            "camera-{name}",
        ),
        Process(
            "faulty-policy",
            "trimvla.sim.robots.faulty_policy",
            "FaultyPolicyConfig",
            "a policy with faults",
            "policy",
        ),
    )
}


def read_system(source: str | Path, overrides: Sequence[str] = ()) -> Sections:
    """Sections of a TOML file, or of a shipped configuration by name, with `section.key=value`
    overrides.

    Raises ConfigError that lists everything that is wrong, in all sections.
    """
    shipped = CONFIGS / f"{source}.toml"
    sections = decode_file(shipped if shipped.exists() else Path(source))
    problems = [problem for text in overrides if (problem := override(sections, text))]
    for name in sections:
        try:
            configure(name, complete(name, sections))
        except ConfigError as error:
            problems.append(str(error))
    if not problems:
        problems = _twice(sections)
    if problems:
        raise ConfigError("; ".join(problems))
    return sections


def override(sections: Sections, text: str) -> str:
    """Set `section.key=value`; the value is TOML, or a plain string.

    Returns what is wrong, if anything.
    """
    place, _, value = text.partition("=")
    name, *inner, key = place.split(".") if "." in place else ("", place)
    table: Any = sections.get(name)
    for step in inner:
        table = table.setdefault(step, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return f"{place}: expected section.key with a section of {', '.join(sections)}"
    try:
        table[key] = msgspec.toml.decode(f"value = {value}")["value"]
    except msgspec.DecodeError:
        table[key] = value
    return ""


def complete(name: str, sections: Sections) -> dict[str, Any]:
    """A section with what it leaves to the others: a watcher without a list of its own watches all
    of them.
    """
    section = sections[name]
    if not isinstance(section, Mapping) or section.get("process", name) not in (
        "recorder",
        "metrics",
    ):
        return section
    row = row_of(name, section)
    others = {
        other: settings
        for other, settings in sections.items()
        if other != name and _known(other, settings)
    }
    found: dict[str, Any] = {"processes": list(reports_of(others).values())}
    if row.name == "recorder":
        found |= {"cameras": cameras(others), "system": others}
    return {key: value for key, value in found.items() if value} | section


def reports_of(sections: Sections) -> dict[str, str]:
    """Section's name -> the name that its process reports under."""
    return {
        name: row_of(name, section).report.format(**_named(section))
        for name, section in sections.items()
    }


def cameras(sections: Sections) -> list[str]:
    """Names of the cameras that a system starts, or that its policy looks through."""
    started = [
        _named(section)["name"]
        for name, section in sections.items()
        if row_of(name, section).report == PROCESSES["camera"].report
    ]
    looked = [
        camera
        for name, section in sections.items()
        if row_of(name, section).report == PROCESSES["policy"].report
        for camera in (*_looked_through(section), *section.get("more_cameras", ()))
    ]
    return list(dict.fromkeys([*started, *looked]))


def _looked_through(section: Mapping[str, Any]) -> list[str]:
    """As `PolicyConfig.looked_through`, of a section that may be a recording's or unchecked."""
    several = section.get("cameras")
    if isinstance(several, Mapping) and several:
        return [str(camera) for camera in several.values()]
    return [str(section.get("camera", "front"))]


def section_of(row: str, sections: Sections) -> dict[str, Any]:
    """The settings of the process that a row of the table is for, whatever its section is called;
    empty for none.
    """
    return next(
        (section for name, section in sections.items() if section.get("process", name) == row), {}
    )


def _named(section: Mapping[str, Any]) -> dict[str, str]:
    """The name in a section's settings; every row that has one has the same default."""
    return {"name": str(section.get("name", "front"))}


def _known(name: str, section: object) -> bool:
    """Whether a section is of a process, ours or the user's own; imports none."""
    kind = section.get("process", name) if isinstance(section, Mapping) else None
    return isinstance(kind, str) and (kind in PROCESSES or is_own(kind))


def _twice(sections: Sections) -> list[str]:
    """What two sections would both be: one robot has one policy, and every camera a name of its
    own.
    """
    found: dict[str, str] = {}
    problems = []
    for name, owner in reports_of(sections).items():
        if owner in found:
            problems.append(
                f"{name}: expected one process '{owner}' in a system, '{found[owner]}' is it"
                " already"
            )
        found.setdefault(owner, name)
    return problems


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
    return Process(kind, "", "", "a process of your own", report, **flags)


def python_of(name: str, section: Mapping[str, Any]) -> str:
    """The Python that runs a process: a driver's may be of another environment, `python`."""
    chosen = section.get("python") if row_of(name, section).is_driver else None
    if chosen is None:
        return sys.executable
    if not isinstance(chosen, str) or not os.access(chosen, os.X_OK) or Path(chosen).is_dir():
        words = "the path of a Python that can be run"
        raise ConfigError(f"{name}.python: expected {words}, got {chosen!r}")
    return chosen


def configure(name: str, section: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module of a section's process, or the user's own in its place, and its configuration,
    checked.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: expected a section, got {section!r}")
    if not PROCESS_NAME.fullmatch(name):
        raise ConfigError(
            f"expected letters, digits, '_', '.' or '-', at most 32, got {name!r} for a section's"
            " name"
        )
    process = row_of(name, section)
    if process.is_driver:
        python_of(name, section)
        driver = OwnDriver(section.get("kind"), name)
        ours = ("process", *DRIVER_KEYS, *OWN_FLAGS)
        settings = {key: value for key, value in section.items() if key not in ours}
        return driver, build(driver.config, settings, name)
    if process.is_own:
        own = OwnProcess(process.name, name)
        settings = {
            key: value for key, value in section.items() if key not in ("process", *OWN_FLAGS)
        }
        return own, build(own.config, settings, name)
    module = process.load()
    settings = {key: value for key, value in section.items() if key != "process"}
    return module, build(getattr(module, process.config), settings, name)


def commands(sections: Sections, run_dir: Path, log_format: str = "text") -> dict[str, list[str]]:
    """The command line of every process; the sections are written to the run directory, where each
    finds its own.
    """
    path = run_dir / SYSTEM_FILE
    lock(run_dir).close()  # another system's file stays: its processes may still be started again
    write_file(path, msgspec.msgpack.encode(sections))
    program = ["-m", "trimvla.launch.cli", "process"]
    options = [
        "--system",
        str(path),
        "--run-dir",
        str(run_dir),
        "--supervised",
        "--log-format",
        log_format,
    ]
    return {
        name: [python_of(name, section), *program, name, *options]
        for name, section in sections.items()
    }


def check_system(sections: Sections, instruction: str | None = None) -> None:
    """What no section can know by itself.

    `instruction`: what the robot is to do, where that is known already.

    Raises ConfigError, BundleError for a bundle that is not there, or PromptError for an
    instruction that is too long for a policy.
    """
    configs = {name: configure(name, section) for name, section in sections.items()}
    check_actions(configs)
    check_drivers(configs)
    check_inputs(configs)
    if instruction is not None:
        check_task(configs, instruction)


def programs(sections: Sections, run_dir: Path, log_format: str = "text") -> list[Program]:
    """The same for a supervisor: with the order in which they start, and what is to be done if one
    ends.

    Raises ConfigError before anything is written where the sections do not go together; see
    `check_system`.
    """
    check_system(sections)
    return [
        _program(name, argv, sections[name])
        for name, argv in commands(sections, run_dir, log_format).items()
    ]


def _program(name: str, argv: Sequence[str], section: Mapping[str, Any]) -> Program:
    row = row_of(name, section)
    owner = reports_of({name: dict(section)})[name]
    start_s = max(
        [
            row.start_s,
            *(float(section[key]) + START_MARGIN_S for key in START_OPTIONS if key in section),
        ]
    )
    _, config = configure(name, section)
    stop_s = getattr(config, "safe_pose_s", 0.0) + GRACE_S
    return Program(
        name, argv, row.order, owner, row.matters, row.restart, row.silent_s, start_s, stop_s
    )
