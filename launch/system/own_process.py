"""A process of the user's own in a system: `process = "module:attribute"` in its section.

The function takes its configuration, the run directory, the event that ends it and the name that it
reports under; its first parameter's annotation is the dataclass of its options, which are checked
like ours. Imported only where a configuration is started or checked, never to read a recording
of one. Knows functions and dataclasses; no robot.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import load_function

TAKES = ("config", "run_dir", "stop", "name")


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
