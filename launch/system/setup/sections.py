"""A TOML file -> its sections, one a process: read, completed, overridden and checked.

A section's name is the process's name; `process = "..."` inside names which row of the table it is,
where the two differ, or names a function of the user's own. Knows names and configurations; imports
a process's module only to check its section.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimvla.launch.system.config import build, decode_file
from trimvla.launch.system.setup.own_process import OwnDriver, OwnProcess
from trimvla.launch.system.setup.process_table import OWN_FLAGS, PROCESSES, row_of

# also of a log file, and of a unit of systemd
from trimvla.runtime.bus.topics import CAMERA_NAME as PROCESS_NAME
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own

Sections = dict[str, dict[str, Any]]
"""Process name -> its settings, as they stand in the file."""
CONFIGS = Path(__file__).parents[2] / "configs"
# likewise of a driver's: its class, and the Python of its environment
DRIVER_KEYS = ("kind", "python")


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
