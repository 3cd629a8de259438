"""Processes that watch a system without being part of it: its recorder and its metrics page, added
on request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimvla.launch.system.setup.sections import Sections, cameras, configure, reports_of
from trimvla.runtime.errors import ConfigError

RECORDER = "recorder"
METRICS = "metrics"


def with_recorder(sections: Sections, path: Path) -> Sections:
    """The same system and a recorder that starts first.

    Raises ConfigError if it has one, or the file exists.
    """
    settings = {
        "path": str(path.absolute()),
        "cameras": cameras(sections),
        "processes": [owner for owner in reports_of(sections).values() if owner != METRICS],
        "system": sections,
    }
    return _first(RECORDER, settings, sections)


def with_metrics(sections: Sections, port: int) -> Sections:
    """The same system and a metrics page. Raises ConfigError if it has one."""
    return _first(
        METRICS, {"port": port, "processes": list(reports_of(sections).values())}, sections
    )


def _first(name: str, settings: dict[str, Any], sections: Sections) -> Sections:
    if name in sections or name in reports_of(sections).values():
        raise ConfigError(f"expected a system without a section '{name}', got one")
    configure(name, settings)
    return {name: settings, **sections}
