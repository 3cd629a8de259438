"""The result of `trimvla doctor`. Knows types alone."""

from __future__ import annotations

import msgspec

from trimvla.launch.machine.jetson_state import State
from trimvla.launch.result import VerbResult


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether one thing works here; which other fields there are depends on the thing."""

    ok: bool
    """Whether it was tried and works."""
    why: str | None = None
    """Why not; empty where it works."""
    version: str | None = None
    """Of the library."""
    module: str | None = None
    """Name under which the library was imported."""
    precisions: list[str] | None = None
    """What the processor computes in, in OpenVINO's words."""
    ms: float | None = None
    """One frame of 128 x 128 pixels, rendered [ms]."""
    granted: list[str] | None = None
    """What the operating system lets a control loop have."""
    devices: list[str] | None = None
    """GPUs: name, memory, driver."""
    versions: dict[str, str | None] | None = None
    """Package -> installed version."""


class MachineResult(msgspec.Struct, frozen=True, kw_only=True):
    """The computer."""

    system: str
    """Operating system, release and processor."""
    board: str | None
    """The board's model, where the kernel names it."""
    python: str
    """Version."""
    cores: int | None
    """Processor cores that this process may use."""
    memory_gib: float | None
    """All memory [GiB]."""
    memory_free_gib: float | None
    """Memory that is available [GiB]."""


class TimerResult(msgspec.Struct, frozen=True):
    """How late a sleeping process wakes up at 200 Hz [microseconds]: below every control tick."""

    p50_us: float
    """Median [us]."""
    p99_us: float
    """99th percentile [us]."""
    max_us: float
    """The worst of 100 [us]."""


class DoctorResult(VerbResult, frozen=True, kw_only=True):
    """Everything that was tried; `ok`: this install can run a bundle at all."""

    machine: MachineResult
    """The computer."""
    packages: dict[str, str | None]
    """Package -> installed version, none where it is not installed."""
    backends: dict[str, ProbeAnswer]
    """Provider of ONNX Runtime, or OpenVINO -> whether a session really gets it."""
    gpu: ProbeAnswer
    """NVIDIA's driver."""
    tensorrt: ProbeAnswer
    """Its builder."""
    rendering: dict[str, ProbeAnswer]
    """OpenGL by its MUJOCO_GL name -> whether a frame was drawn."""
    simpler: ProbeAnswer
    """SimplerEnv's tasks in ManiSkill."""
    simpler_env: ProbeAnswer
    """The original SimplerEnv package."""
    cameras: list[str]
    """Video devices."""
    timer: TimerResult
    """How late a process wakes up."""
    realtime: ProbeAnswer
    """What control can request of the operating system."""
    board: State
    """The state that a Jetson reports."""
    advice: list[str]
    """What to install or to set, one line each."""
