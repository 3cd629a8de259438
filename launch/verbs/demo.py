"""`trimvla demo`: the shipped policy drives the simulated robot through real processes and sockets;
a card and a film.

Wires table, processes and film together. Each seed's table and instruction come from the simulator;
nothing is chosen but that no instruction is shown twice while others are to be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.text import Text
from tyro.conf import Positional

from trimvla.launch.console import Console, Status, styled
from trimvla.launch.demo.report import as_table, summarise
from trimvla.launch.demo.results import DemoResult
from trimvla.launch.evaluation import video
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.system.episodes import EpisodeClient, Recording, Request
from trimvla.launch.system.observers import RECORDER, with_recorder
from trimvla.launch.system.processes import (
    Sections,
    check_system,
    programs,
    read_system,
    reports_of,
)
from trimvla.launch.system.results import NO_TIMES, recording_result
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bundle import manifest
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.printable import printable

SYSTEM = "demo"
VIDEO_SIDE = 384  # pixels
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
    requests = plan(args)
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


def plan(args: Args) -> list[Request]:
    """One table per episode, from consecutive seeds; a seed is passed over if its instruction was
    had already.
    """
    from trimvla.sim.tabletop.env import TabletopEnv

    env = TabletopEnv(variant=args.variant, observe=False)
    requests: list[Request] = []
    used: set[str] = set()
    for seed in range(args.seed, args.seed + 100 * args.episodes):
        env.reset(seed=seed)
        if env.instruction not in used and len(requests) < args.episodes:
            requests.append(Request(len(requests) + 1, seed, env.instruction, args.variant))
            used.add(env.instruction)
    env.close()
    return requests


def play(
    sections: Sections, run_dir: Path, requests: Sequence[Request], console: Console
) -> tuple[list[Recording], dict[str, Report]]:
    """All episodes on one running system, with a live line; recordings and the processes' last
    reports.
    """
    with (
        Supervisor(programs(sections, run_dir), run_dir) as group,
        EpisodeClient(run_dir, list(reports_of(sections).values()), group.check) as director,
        console.status("starting") as line,
    ):
        director.wait_until_ready("policy")
        recordings = [
            play_one(director, request, len(requests), console, line) for request in requests
        ]
        group.stop()
        return recordings, director.last_reports()


def play_one(
    director: EpisodeClient, request: Request, total: int, console: Console, line: Status
) -> Recording:
    """One episode; the live line shows what is happening, a lasting line how it ended."""

    def watch(recording: Recording) -> None:
        control = director.report("control")
        policy = director.report("policy")
        thinking = policy.latencies.get("inference.total", NO_TIMES)
        latency = control.latencies.get("photon_to_action", NO_TIMES)
        line.update(
            f"[{request.number}/{total}] {request.instruction} | step {recording.steps} |"
            f" {control.state} | inference {thinking.p50:.0f} ms | camera to command"
            f" {latency.p50:.0f} ms"
        )

    recording = director.play(request, watch)
    outcome = styled("done", "green") if recording.success else styled("failed", "red")
    rest = f" after {recording.steps} steps, {recording.seconds:.1f} s"
    console.print(Text.assemble(f"  {printable(request.instruction)}: ", outcome, rest))
    return recording


def clips(recordings: Sequence[Recording]) -> Iterator[video.Clip]:
    """Draw the recorded states anew, larger than the policy saw them."""
    from trimvla.sim.robots.camera import SceneRenderer

    renderer = SceneRenderer(VIDEO_SIDE)
    for recording in recordings:
        pictures = [renderer.picture(state) for state in recording.states]
        yield video.Clip(pictures, recording.request.instruction, recording.success)
    renderer.close()
