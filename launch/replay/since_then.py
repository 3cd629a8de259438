"""What differs between a recording and what repeats it: the actions' meaning, versions, processor.

Knows recordings and manifests; repeats nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from trimvla.launch.system.setup.action_check import check_bundle
from trimvla.runtime.bundle.action_meaning import ActionMeaning, meaning_of
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.record.recorder import processor
from trimvla.runtime.record.recording import Recording, fact

COMPARED = ("trimvla", "onnxruntime", "numpy", "pillow")


def check_recorded(recording: Recording, rungs: dict[str, Policy]) -> None:
    """Raise ConfigError where a recorded chunk's actions mean something else than those of the
    policy that repeats it.

    A chunk from before they named their kinds is compared by its rate.
    """
    first = next(iter(rungs))
    recorded = {(chunk.rung, chunk.kinds, chunk.control_hz) for chunk in chunks(recording)}
    for rung, kinds, hz in sorted(recorded):
        name = rung if rung in rungs else first
        got = meaning_of(rungs[name].manifest.action)
        check_bundle(name, got, ActionMeaning(kinds or got.kinds, hz), f"{recording.path}")


def chunks(recording: Recording) -> Iterator[ActionChunk]:
    """All recorded chunks."""
    for entry in recording.entries(lambda name: name == "chunk"):
        if isinstance(entry.message, ActionChunk):
            yield entry.message


def changes(recording: Recording) -> dict[str, tuple[str, str]]:
    """What is not as it was when it was recorded: then and now. Each of these may change the last
    bits."""
    versions = fact(recording, "versions", dict[str, str]) or {}
    pairs = {name: (versions.get(name, "unknown"), version(name)) for name in COMPARED}
    pairs["processor"] = (fact(recording, "processor", str) or "unknown", processor())
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
