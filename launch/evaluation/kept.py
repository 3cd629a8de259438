"""Results that were kept in files, read back as what they are: also those of earlier versions.

Knows files and types; draws and writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from trimvla.launch.ablation.results import AblationRow
from trimvla.launch.evaluation.results import CurveRow, Estimate
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.statistics import Comparison
from trimvla.sim.evaluation.success import Success

T = TypeVar("T")


class KeptSide(Success, frozen=True, kw_only=True):
    """One bundle of an evaluation."""

    bundle: str
    """Which."""


class KeptEvaluation(KeptSide, frozen=True, kw_only=True):
    """Of `trimvla eval`: what a page needs of it."""

    env: str = ""
    """The environment."""
    seed: int = 0
    """Of the first episode."""
    execute: int = 2
    """Steps of a chunk that were executed before the next look."""
    against: KeptSide | None = None
    """The reference."""
    comparison: Comparison | None = None
    """Candidate minus reference."""
    curve: list[CurveRow] | None = None
    """One row a bundle and latency."""
    estimates: tuple[Estimate, ...] = ()
    """Where the latencies of devices come from."""
    control_hz: float = 5.0
    """Actions a second."""


class KeptSettings(msgspec.Struct, frozen=True):
    """Options of `trimvla ablate`."""

    env: str = "tabletop"
    """The environment."""


class KeptAblation(msgspec.Struct, frozen=True):
    """Of `trimvla ablate`."""

    rows: list[AblationRow]
    """One a plan."""
    settings: KeptSettings
    """The options of the run."""


class KeptTime(msgspec.Struct, frozen=True):
    """A row of `trimvla bench`."""

    layer: str
    part: str
    bundle: str
    backend: str
    p50_ms: float
    p99_ms: float
    ratio_to_dense: float | None

    @property
    def is_whole(self) -> bool:
        """Whether it is image in, chunk out."""
        return self.layer == "L2" and self.part == "total"


class KeptBench(msgspec.Struct, frozen=True):
    """Of `trimvla bench`."""

    threads: int
    """Of an operator."""
    rows: list[KeptTime]
    """All layers and parts."""


class KeptPairs(msgspec.Struct, frozen=True):
    """Two bundles on the same episodes, as `trimmed_success.json` keeps them."""

    bundle: str
    episodes: int
    candidate_successes: int
    reference_successes: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    non_inferior: bool


def read(path: Path, kind: type[T]) -> T:
    """A kept result. Raises ConfigError where there is none, or another one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: expected a result, got: {error}") from None
