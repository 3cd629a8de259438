"""`trimvla build`: a bundle's graphs -> engines for this device.

Checks memory first; `export.to_tensorrt` builds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.export.tensorrt.build import WORKSPACE_MB, Report, Request, build_bundle
from trimvla.launch.console import Progress, progress_bar
from trimvla.launch.machine.engines import BuildResult, as_table, engine_result, named
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.policies.families import family_of, parse_config
from trimvla.policies.sizes.memory import (
    BOARDS,
    MIB,
    MemoryPlan,
    require_memory,
    usable_on,
)
from trimvla.runtime.backends.tensorrt.device import Device, find_device, free_bytes
from trimvla.runtime.backends.tensorrt.engine_cache import content_digest
from trimvla.runtime.backends.tensorrt.engine_folders import to_build_in
from trimvla.runtime.backends.tensorrt.library import TrtBackend, load_trt
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Args(Options):
    """Build TensorRT engines for this device from a bundle.

    What is built already is taken from the cache.
    """

    bundle: Positional[str]
    """A bundle's path or a shipped bundle's name."""

    backend: TrtBackend = "tensorrt"
    """Which library builds: TensorRT (on Jetson it comes with JetPack), or TensorRT for RTX."""

    workspace_mb: int = WORKSPACE_MB
    """Scratch memory that the builder may use [MiB]."""

    out: Path | None = None
    """The folder of engines (default: /var/lib/trimvla/engines where that can be written to, else
    one below ~/.cache/trimvla/engines/ for what the graphs hold; `--backend tensorrt` of the other
    verbs looks in both).
    """

    board: str | None = None
    """Refuse what does not fit on this board: orin-nano, orin-nx, orin or thor (default: this
    machine's memory).
    """

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out, folder=True),)


def run(args: Args) -> BuildResult:
    """Check memory, build, list the engines."""
    if args.workspace_mb < 1:
        raise ConfigError(f"expected at least 1 for --workspace-mb, got {args.workspace_mb}")
    directory = bundles.resolve(args.bundle)
    device = find_device()
    with bundles.opened(directory) as (files, manifest), files.named() as place:
        memory = check_memory(args, manifest, device)
        library = load_trt(args.backend)
        out = to_build_in(args.out, content_digest(manifest))
        request = Request(
            library, device, out, args.workspace_mb * MIB, check=files.check_unchanged
        )
        with progress_bar() as progress:
            built = build_bundle(
                place, manifest, request, reporter(progress, list(manifest.stages))
            )
    args.console().print(
        as_table(f"{manifest.name}, by {library.title} for {named(device)}", built, memory)
    )
    return BuildResult(ok=True, engines=[engine_result(engine, out) for engine in built])


def check_memory(args: Args, manifest: Manifest, device: Device) -> MemoryPlan | None:
    """Refuse what is too large before anything is built; None for a bundle that does not have its
    policy's sizes, or whose family does not work out what its engines need.

    Raises:
        ConfigError: the board, or this machine, has too little memory.
    """
    if not manifest.policy:
        return None
    cfg = parse_config(manifest.policy)
    memory = family_of(cfg).memory
    if memory is None:
        return None
    limit = args.workspace_mb * MIB
    plan = memory(cfg, manifest.plan, manifest.precision, args.backend, limit)
    if args.board is not None:
        require_memory(plan, usable_on(args.board), BOARDS[args.board].title)
    elif (free := free_bytes()) is not None:
        require_memory(plan, free, "this machine", run_here=device.has_gpu)
    return plan


def reporter(progress: Progress, stages: list[str]) -> Report:
    """Shows which stage is worked on, and how many are done."""
    task = progress.add_task("building", total=len(stages))

    def report(stage: str, what: str) -> None:
        progress.update(task, description=f"{stage}: {what}", completed=stages.index(stage))

    return report
