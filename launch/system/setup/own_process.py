"""A process or a robot's driver of the user's own in a system: `process = "module:attribute"`, or
`process = "driver"` with `kind = "module:Class"`, in its section.

A driver's class takes its configuration; a function also the run directory, the event that ends it
and the name that it reports under. The first parameter's annotation is the dataclass of its
options, which are checked like ours. Imported only where a configuration is started or checked,
never to read a recording of one. Knows functions, classes and dataclasses; no robot.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.bus.topics import CAMERA_NAME
from trimvla.runtime.drivers.driver import Driver, DriverConfig, check_settings
from trimvla.runtime.drivers.loop import drive
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own, load_function, load_object

TAKES = ("config", "run_dir", "stop", "name")
DRIVER = "driver"  # as `process`
DRIVERS = {
    "lerobot": "trimvla.runtime.drivers.lerobot:LeRobotDriver",
    "ros2": "trimvla.runtime.ros.driver:Ros2Driver",
    "widowx-250": "trimvla.runtime.drivers.widowx:WidowX",
    "sim-arm": "trimvla.sim.robots.arm:SimArm",
}
"""The drivers that come with the program, by their short names."""


class OwnProcess:
    """In a process module's place: `run` with the name that it reports under."""

    def __init__(self, reference: str, section: str) -> None:
        """Import it. Raises ConfigError for what is no such function."""
        self._name = section
        self._reference = reference
        self._function: Callable[..., Any] = load_function(reference, f"{section}.process", TAKES)
        self.config = self._config_class()

    def run(self, config: object, run_dir: Path, stop: threading.Event) -> None:
        """Run until `stop`."""
        self._function(config, run_dir, stop, self._name)

    def _config_class(self) -> type:
        """The dataclass of its options: its first parameter's annotation."""
        option = f"{self._name}.process"
        first = next(iter(inspect.signature(self._function).parameters))
        try:
            hint = typing.get_type_hints(self._function).get(first)
        except Exception as error:  # an annotation is any expression
            raise ConfigError(f"{option}: {self._reference}: {first}: {error}") from None
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            words = f"a dataclass as the annotation of '{first}', its options"
            raise ConfigError(f"{option}: {self._reference}: expected {words}, got {hint!r}")
        return hint


class OwnDriver:
    """In a process module's place: `run` with the name that it reports under."""

    def __init__(self, kind: object, section: str) -> None:
        """Import it. Raises ConfigError for what is no driver's class."""
        self._name = section
        self._option = f"{section}.kind"
        known = f"one of {', '.join(DRIVERS)}, or module:Class of your own"
        if not isinstance(kind, str) or not (kind in DRIVERS or is_own(kind)):
            raise ConfigError(f"{self._option}: expected {known}, got {kind!r}")
        self._reference = DRIVERS.get(kind, kind)
        found = load_object(self._reference, self._option)
        if not (isinstance(found, type) and issubclass(found, Driver)):
            words = "a subclass of trimvla.runtime.Driver"
            raise ConfigError(f"{self._option}: {self._reference}: expected {words}, got {found!r}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            words = f"the methods {', '.join(missing)}"
            raise ConfigError(f"{self._option}: {self._reference}: expected {words}, found none")
        self._driver: Callable[[Any], Driver] = found
        self._class: type[Driver] = found
        self.config = self._config_class()

    def run(self, config: DriverConfig, run_dir: Path, stop: threading.Event) -> None:
        """Run until `stop`."""
        drive(self._driver(config), config, run_dir, stop, name=self._name)

    def description(self, config: DriverConfig) -> Description | None:
        """The robot by its settings alone; None where only the connected one knows.

        Raises ConfigError where settings and description contradict each other.
        """
        try:
            own = self._class.describe(config)
        except ValueError as error:
            raise ConfigError(f"{self._name}: {self._reference}: {error}") from None
        if own is not None:
            try:
                check_settings(config, own)
            except ConfigError as error:
                raise ConfigError(f"{self._name}: {error}") from None
        return own

    def published_cameras(self, config: DriverConfig) -> tuple[str, ...] | None:
        """The cameras that it publishes itself, by its settings alone; None where only the
        connected robot knows them.

        Raises ConfigError for what are no names of cameras.
        """
        names: object = self._class.published_cameras(config)
        if names is None:
            return None
        if not isinstance(names, (list, tuple)) or not all(map(_is_camera, names)):
            words = f"{self._option}: {self._reference}: expected names of cameras"
            raise ConfigError(f"{words} of 'published_cameras', got {names!r}")
        return tuple(names)

    def _config_class(self) -> type:
        """The dataclass of its options: its constructor's annotation, or every driver's."""
        if self._class.__init__ is object.__init__:
            words = "a constructor that takes its options"
            raise ConfigError(f"{self._option}: {self._reference}: expected {words}, found none")
        parameters = list(inspect.signature(self._class).parameters)
        if len(parameters) != 1:
            words = "a constructor with one parameter, its options"
            raise ConfigError(
                f"{self._option}: {self._reference}: expected {words}, got {parameters}"
            )
        try:
            hint = typing.get_type_hints(self._class.__init__).get(parameters[0])
        except Exception as error:  # an annotation is any expression
            text = f"{self._option}: {self._reference}: {parameters[0]}: {error}"
            raise ConfigError(text) from None
        fits = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        if not (fits and isinstance(hint, type) and issubclass(hint, DriverConfig)):
            words = f"a dataclass of DriverConfig as the annotation of '{parameters[0]}'"
            raise ConfigError(f"{self._option}: {self._reference}: expected {words}, got {hint!r}")
        return hint


def _is_camera(name: object) -> bool:
    return isinstance(name, str) and CAMERA_NAME.fullmatch(name) is not None
