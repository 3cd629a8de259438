"""`trimvla doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from trimvla.launch.machine.examination import examine
from trimvla.launch.machine.report import advice, as_table
from trimvla.launch.machine.results import DoctorResult
from trimvla.launch.options import Options


@dataclass(frozen=True)
class Args(Options):
    """List what this machine can do, and what to install for the rest."""


def run(args: Args) -> DoctorResult:
    """Examine the machine, print a table for people, return everything as data."""
    found = examine()
    result = msgspec.structs.replace(found, advice=advice(found))
    console = args.console()
    console.print(as_table(result))
    for line in result.advice:
        console.print(f"  - {line}")
    return result
