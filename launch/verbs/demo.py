"""`trimvla demo`: the shipped policy drives the simulated robot through real processes and sockets;
a card and a film.

Wires table, processes and film together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.console import Console
from trimvla.launch.demo.play import clips, plan, play
from trimvla.launch.demo.report import as_table, summarise
from trimvla.launch.demo.results import DemoResult
from trimvla.launch.evaluation import video
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.results import recording_result
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.setup.observers import RECORDER, with_recorder
from trimvla.launch.system.setup.programs import check_system
from trimvla.launch.system.setup.sections import read_system
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.runtime.bundle import manifest
from trimvla.runtime.errors import ConfigError

SYSTEM = "demo"
SLOW_PERIODS = 2  # control periods that one inference may take before a success would be luck


@dataclass(frozen=True)
class Args(Options):
    """Watch a policy drive the simulated robot, in closed loop from camera frames, through real
    processes.
    """

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    episodes: int = 3
    """How many, on different instructions."""

    seed: int = 2000
    """Seed of the first table; the others follow."""

    variant: Literal["default", "lighting", "texture", "camera", "distractors", "all"] = "default"
    """What the images look like."""

    video: Path = Path("out/demo.mp4")
    """Where the film goes: .mp4 or .gif."""

    record: Path | None = None
    """Also write everything that travels to this file, usually *.mcap."""

    set: tuple[str, ...] = ()
    """Changes to launch/configs/demo.toml, such as `policy.threads=2`; `--policy.threads 2` does
    the same.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError for what is out of range."""
        if self.episodes < 1 or self.seed < 0:
            raise ConfigError(
                f"expected --episodes >= 1 and --seed >= 0, got {self.episodes} and {self.seed}"
            )
        video.check_suffix(self.video)

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return Output("--video", self.video), Output("--record", self.record)


def run(args: Args) -> DemoResult:
    """Start everything, play the episodes, stop everything; then the film and the card."""
    bundle = manifest.resolve(args.bundle)
    sections = read_system(SYSTEM, [f"policy.bundle={bundle.resolve()}", *args.set])
    check_system(sections)
    if args.record is not None:
        sections = with_recorder(sections, args.record)
    requests = plan(args.episodes, args.seed, args.variant)
    terminate_as_interrupt()
    with temporary_run_dir() as run_dir:
        recordings, reports = play(sections, run_dir, requests, Console(stderr=True))
    film = video.write(args.video, list(clips(recordings)), fps=sections["control"]["hz"])
    last = reports.get(RECORDER)
    result = summarise(
        recordings,
        reports,
        bundle=args.bundle,
        video=film,
        recording=None if args.record is None else recording_result(last, args.record),
    )
    console = args.console()
    console.print(as_table(result))
    if result.inference_ms.p50 > SLOW_PERIODS * 1e3 / result.control_hz.asked:
        console.print(
            "Inference is too slow here for this control rate: mostly the robot holds. Is the"
            " machine busy?"
        )
    return result
