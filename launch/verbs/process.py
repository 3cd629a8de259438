"""`trimvla process`: one process of a system, right here.

What `run` and `demo` start, once for each section.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.options import Options
from trimvla.launch.result import VerbResult
from trimvla.launch.system.config import decode_file
from trimvla.launch.system.networking import use_network
from trimvla.launch.system.run_dirs import membership
from trimvla.launch.system.setup.sections import complete, configure
from trimvla.launch.system.signals import stop_event
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Args(Options):
    """Run one process of a system until it is stopped."""

    name: Positional[str]
    """The section's name."""

    system: Path
    """The TOML file of the system, or what `run` made of it."""

    run_dir: Path
    """Where the sockets are; the same for all processes of a system."""

    network: Path | None = None
    """A TOML file with the topics that cross hosts and their keys."""

    supervised: bool = False
    """Also stop when standard input ends: the parent is gone."""


class ProcessResult(VerbResult, frozen=True, kw_only=True):
    """A process that ended because it was stopped."""

    process: str
    """The section's name."""


def run(args: Args) -> ProcessResult:
    """Configure and run."""
    stop = stop_event(watch_parent=args.supervised)
    sections = decode_file(args.system)  # the others' sections are the others' business
    if args.name not in sections:
        raise ConfigError(f"expected one of the processes {', '.join(sections)}, got {args.name!r}")
    if not os.access(args.run_dir, os.W_OK):
        raise ConfigError(
            f"expected a directory that can be written to, got {args.run_dir} for --run-dir"
        )
    use_network(args.network, args.run_dir)
    module, config = configure(args.name, complete(args.name, sections))
    with membership(args.run_dir) if args.supervised else nullcontext():
        module.run(config, args.run_dir, stop)
    return ProcessResult(ok=True, process=args.name)
