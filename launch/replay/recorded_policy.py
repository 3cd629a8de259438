"""The policy of a recording: which bundles it names, which of them may be run, and how they are
opened.

A recording comes from elsewhere: a path in it is shown and not obeyed, unless a person requests
that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from trimvla.launch.system.setup.sections import section_of
from trimvla.runtime.backends.runner import is_ours
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError, RecordingError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.record.recording import Recording, fact

Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]


class RecordedRtc(msgspec.Struct):
    """The settings of real-time chunking in a recording."""

    enabled: bool = False


class RecordedPolicy(msgspec.Struct):
    """The settings of the process `policy` in a recording.

    Whoever made the file may have written anything here.
    """

    bundle: str | None = None
    camera: str = "front"
    cameras: dict[str, str] = {}
    rungs: list[str] = []
    backend: str = "onnxruntime"
    provider: str | None = None
    threads: Threads = 1
    rtc: RecordedRtc = msgspec.field(default_factory=RecordedRtc)

    @property
    def first_camera(self) -> str:
        """The robot's camera that it looked through; of several, the first."""
        return next(iter(self.cameras.values()), self.camera)


def recorded_policy(recording: Recording) -> RecordedPolicy:
    """The settings of the recording's policy. Raises RecordingError for what is none."""
    sections = fact(recording, "system", dict[str, dict[str, Any]]) or {}
    try:
        return msgspec.convert(section_of("policy", sections), RecordedPolicy)
    except (msgspec.ValidationError, ConfigError) as error:
        raise RecordingError(f"{recording.path}: fact 'system': {error}") from None


def choose_bundles(
    recording: Recording, bundle: str | None, recorded_paths: bool
) -> dict[str, Path]:
    """The bundles to run by the names under which they made their calls, the top one first.

    What a recording names is run where it is a shipped bundle's name, or where its user trusts the
    file; else it is shown. Raises ConfigError, BundleError.
    """
    if bundle is not None:
        return {bundle: bundles.resolve(bundle)}
    recorded = recorded_policy(recording)
    names = recorded.rungs or ([] if recorded.bundle is None else [recorded.bundle])
    if not names:
        raise ConfigError(
            f"expected --bundle: {recording.path} does not say which bundle it was made with"
        )
    if recorded_paths:
        return {name: bundles.resolve(name) for name in names}
    found = {name: bundles.shipped_directory(name) for name in names}
    foreign = [name[:200] for name, directory in found.items() if directory is None]
    if foreign:
        way = "--bundle, or --recorded-paths if the recording is your own"
        raise ConfigError(
            f"expected {way}: {recording.path} names {foreign}, which are no shipped bundles"
        )
    return {name: directory for name, directory in found.items() if directory is not None}


def open_rungs(
    recording: Recording,
    chosen: dict[str, Path],
    backend: str | None,
    provider: str | None,
    threads: int | None,
) -> dict[str, Policy]:
    """The policies by name as they were when they were recorded, but for what is requested
    otherwise; the top one first.

    With one bundle one policy makes every call, whatever rung made it then.
    """
    recorded = recorded_policy(recording)
    if backend is None and not is_ours(recorded.backend):
        named = f"{recording.path} names {recorded.backend[:200]!r}"
        words = "which is none of ours and is not imported unasked"
        raise ConfigError(f"expected --backend: {named}, {words}")
    options: dict[str, Any] = {
        "backend": backend or recorded.backend,
        "provider": provider or (None if backend else recorded.provider),
        "threads": recorded.threads if threads is None else threads,
        "guided": recorded.rtc.enabled,
    }
    return {name: Policy.load(directory, **options) for name, directory in chosen.items()}
