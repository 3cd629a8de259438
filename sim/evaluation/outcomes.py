"""A run's outcomes on disk: a line that names what is played, then one line for every finished
episode.

A run that was killed reads back what it had, whole rounds only, and plays the rest; a line cut off
does not count. Knows lines and outcomes; plays nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.rollout import PairedOutcomes, WorkItem
from trimvla.sim.evaluation.success import Outcome

Header = Mapping[str, Any]
"""JSON-able; two runs with the same header give the same outcomes."""


class OutcomeLog:
    """The file of one run, open for more."""

    def __init__(self, path: Path, header: Header, roles: Sequence[str]) -> None:
        """Open or create.

        Raises:
            ConfigError: the file is of another run; names the field that differs.
        """
        self.rounds: dict[WorkItem, PairedOutcomes] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        if text.strip():
            check_header(path, text, header)
            self.rounds = whole_rounds(read_lines(text), roles)
        self._file = path.open("a")
        if not text.strip():
            self._write({"run": header})
        elif not text.endswith("\n"):
            self._file.write("\n")  # what was cut off stays a line of its own

    def __enter__(self) -> OutcomeLog:
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    def add(self, played: PairedOutcomes) -> None:
        """Keep a round; on disk when this returns, but for a power cut."""
        self.rounds[item_of(played)] = played
        for role, outcome in played.items():
            self._write({"role": role, **asdict(outcome)})

    def missing(self, items: Sequence[WorkItem]) -> list[WorkItem]:
        """What is still to be played."""
        return [item for item in items if item not in self.rounds]

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def item_of(played: PairedOutcomes) -> WorkItem:
    """Condition and seed of a round."""
    first = next(iter(played.values()))
    return first.latency, first.seed


def read_lines(text: str) -> Iterator[dict[str, object]]:
    """The lines that are whole."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def read_header(path: Path) -> Header | None:
    """What a run's file is of; None where there is no such file."""
    lines = read_lines(path.read_text()) if path.exists() else iter(())
    found = next(lines, {}).get("run")
    return found if isinstance(found, dict) else None


def check_header(path: Path, text: str, header: Header) -> None:
    """Raises ConfigError where the file is of another run."""
    found = next(read_lines(text), {}).get("run")
    if not isinstance(found, dict):
        raise ConfigError(
            f'{path}: expected a line that begins with {{"run": ...}} first, got another file'
        )
    wanted = json.loads(json.dumps(header))
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{path}: expected the outcomes of this run, got those of one with {name!r}"
            f" {json.dumps(found.get(name))[:200]} instead of {json.dumps(wanted.get(name))[:200]};"
            " name another --out"
        )


def whole_rounds(
    lines: Iterator[dict[str, object]], roles: Sequence[str]
) -> dict[WorkItem, PairedOutcomes]:
    """Rounds in which every role has played."""
    rounds: dict[WorkItem, PairedOutcomes] = defaultdict(dict)
    for line in lines:
        if "role" in line:
            role = str(line.pop("role"))
            outcome = msgspec.convert(line, Outcome)
            rounds[outcome.latency, outcome.seed][role] = outcome
    whole = {item: played for item, played in rounds.items() if set(played) == set(roles)}
    return {item: {role: played[role] for role in roles} for item, played in whole.items()}
