"""Sections -> the programs that a supervisor starts: checked together, written to a run directory.

Starts none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from trimvla.launch.system.child import GRACE_S, Program
from trimvla.launch.system.run_dirs import lock
from trimvla.launch.system.setup.action_check import (
    check_actions,
    check_drivers,
    check_inputs,
    check_task,
)
from trimvla.launch.system.setup.process_table import row_of
from trimvla.launch.system.setup.sections import Sections, configure, python_of, reports_of
from trimvla.launch.system.setup.topic_check import ANYBODY, Outside, check_topics
from trimvla.runtime.bus.network import used
from trimvla.runtime.bus.run_dir import write_file

# settings by which a process itself gives up
START_OPTIONS = ("start_timeout_s", "ready_timeout_s")
START_MARGIN_S = 30.0  # for its imports, and for its own error to come first
SYSTEM_FILE = "system.msgpack"  # in the run directory; not JSON, which has no infinity


def check_system(
    sections: Sections, instruction: str | None = None, outside: Outside = ANYBODY
) -> None:
    """What no section can know by itself.

    Args:
        sections: of the system.
        instruction: what the robot is to do, where that is known already.
        outside: who else may publish.

    Raises ConfigError, BundleError for a bundle that is not there, or PromptError for an
    instruction that is too long for a policy.
    """
    configs = {name: configure(name, section) for name, section in sections.items()}
    check_actions(configs)
    check_drivers(configs)
    check_inputs(configs)
    check_topics(sections, configs, outside)
    if instruction is not None:
        check_task(configs, instruction)


def programs(sections: Sections, run_dir: Path, log_format: str = "text") -> list[Program]:
    """The same for a supervisor: with the order in which they start, and what is to be done if one
    ends.

    Raises ConfigError before anything is written where the sections do not go together; see
    `check_system`.
    """
    check_system(sections, outside=Outside(tuple(used(run_dir).topics)))
    return [
        _program(name, argv, sections[name])
        for name, argv in commands(sections, run_dir, log_format).items()
    ]


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
