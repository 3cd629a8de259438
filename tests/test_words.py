"""Code names input and output by the field's words: receive, publish, request, report.

Verbs of speech are counted, and their number only falls; private names that the glossary
(docs/concepts/glossary.md) has replaced do not come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import house

SPEECH = re.compile(
    r"(?<![a-z.])"  # `file.tell()` is Python's own
    r"(?:say|says|said|saying|tell|tells|told|telling|hear|hears|heard|hearing"
    r"|speak|speaks|spoke|spoken)(?![a-z])",
    re.IGNORECASE,
)
MOST_SPEECH = 16  # mostly in messages that users may match; this only ever falls
REPLACED = {
    "Course": "TrainingPreset",
    "Deal": "WorkItem",
    "Deed": "Action",
    "Director": "EpisodeClient",
    "Doorkeeper": "ZapAuthenticator",
    "Far": "RemoteEndpoint",
    "Grant": "RealtimeSetting",
    "Guard": "Interlock",
    "Pilot": "LatencySimulator",
    "Player": "PolicyOrExpert",
    "Post": "ManagedProcess",
    "Round": "PairedOutcomes",
    "Seam": "TransitionLimiter",
    "Spoilt": "FaultInjectedPolicy",
    "StandIn": "DummyPolicy",
    "Thinker": "InferenceScheduler",
    "Witness": "SafetyMonitor",
    "localise": "to_local_clock",
}
DEFINED = re.compile(rf"^\s*(?:(?:class|def) |)({'|'.join(REPLACED)})\b *[=:(]", re.MULTILINE)


def speech(text: str) -> list[str]:
    """Lines with verbs of speech, names and comments included."""
    return [line.strip() for line in text.splitlines() if SPEECH.search(line)]


def replaced(text: str) -> list[str]:
    """Names that a text defines although the glossary has others."""
    return [f"{name}: {REPLACED[name]}" for name in DEFINED.findall(text)]


def sources(root: Path) -> Iterator[tuple[str, str]]:
    """Path and text of every file of the five folders."""
    for path in house.files(root):
        yield str(path.relative_to(root)), path.read_text()


def test_verbs_of_speech_do_not_grow(repo_root: Path) -> None:
    found = [f"{where}: {line}" for where, text in sources(repo_root) for line in speech(text)]
    assert len(found) <= MOST_SPEECH, "\n".join(found)


def test_replaced_names_do_not_come_back(repo_root: Path) -> None:
    found = [f"{where}: {name}" for where, text in sources(repo_root) for name in replaced(text)]
    assert found == []


@pytest.mark.parametrize("line", ["self._said = 1", "def tell(args):", "# What it Says."])
def test_a_verb_of_speech_is_found(line: str) -> None:
    assert speech(f"x = 1\n{line}\nretell = file.tell()\n") == [line]


@pytest.mark.parametrize("line", ["class Pilot:", "Deal = tuple[str, int]", "def localise(ns):"])
def test_a_replaced_name_is_found(line: str) -> None:
    assert len(replaced(f"{line}\n    pass\n")) == 1
    assert replaced("Farther = 1\nround = Pilots(2)\n") == []
