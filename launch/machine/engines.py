"""Engines that were built for this machine: what `trimvla build` answers and shows. Builds none."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.table import Table

from trimvla.export.tensorrt.build import Engine
from trimvla.launch.result import VerbResult
from trimvla.policies.sizes.memory import (
    GIB,
    MemoryPlan,
)
from trimvla.runtime.backends.tensorrt.device import NONE, Device


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stage's engine; all that is known of it stands in the record beside it."""

    stage: str
    """Which stage."""
    file: Path
    """The engine."""
    bytes: int
    """Its size [bytes]."""
    seconds: float
    """What building it took [s], now or when it was put into the cache."""
    precision: str
    """What most of its matrix products compute in."""


class BuildResult(VerbResult, frozen=True, kw_only=True):
    """The engines of a bundle for this device."""

    engines: list[EngineResult]
    """One a stage."""


def engine_result(engine: Engine, out: Path) -> EngineResult:
    """One engine, from its record."""
    record = engine.record
    return EngineResult(
        stage=record.key.stage,
        file=out / record.key.file,
        bytes=record.bytes,
        seconds=record.seconds,
        precision=record.precision,
    )


def as_table(title: str, built: list[Engine], memory: MemoryPlan | None) -> Table:
    """One row an engine; below, the planned memory and what is not known."""
    table = Table(
        "stage", "MB", "seconds", "precision", "read back", title=title, title_justify="left"
    )
    for engine in built:
        record = engine.record
        answer = record.read_back
        compared = f"{answer['compared']} tensors agree" if answer["ok"] else "not possible here"
        seconds = "cached" if engine.cached else f"{record.seconds:.1f}"
        table.add_row(
            record.key.stage, f"{record.bytes / 1e6:.1f}", seconds, record.precision, compared
        )
    needs = (
        ""
        if memory is None
        else f"planned: {memory.building / GIB:.1f} GiB to build, {memory.running / GIB:.1f} to run"
    )
    reasons = dict.fromkeys(engine.record.read_back.get("why") for engine in built)
    table.caption = "; ".join(part for part in (needs, *reasons) if part) or None
    return table


def named(device: Device) -> str:
    """The GPU and the JetPack release, as far as there are any."""
    known = [name for name in (device.gpu, device.jetpack) if name != NONE]
    return ", ".join(known) or "a GPU that is not here"
