"""`trimvla demo`: the shipped policy drives the simulated robot through real processes and sockets;
a card and a film.

Wires table, processes and film together. Each seed's table and instruction come from the simulator;
nothing is chosen but that no instruction is shown twice while others are to be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from trimvla.launch.console import Console, Status, styled
from trimvla.launch.evaluation import video
from trimvla.launch.options import Options, Result
from trimvla.launch.outputs import Output
from trimvla.launch.system.client import EpisodeClient, Recording, Request
from trimvla.launch.system.observers import RECORDER, outcome, with_recorder
from trimvla.launch.system.processes import check_system, programs, read_system, reports_of
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bundle import manifest
from trimvla.runtime.bus.messages import Report, Summary
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.printable import printable

SYSTEM = "demo"
VIDEO_SIDE = 384  # pixels
SLOW_PERIODS = 2  # control periods that one inference may take before a success would be luck
NO_TIMES = Summary(0, 0.0, 0.0, 0.0)


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
    """What the pictures look like."""

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


def run(args: Args) -> Result:
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
    result = summarise(recordings, reports) | {"bundle": args.bundle, "video": film}
    if args.record is not None:
        result["recording"] = outcome(reports.get(RECORDER), args.record)
        result["ok"] = result["ok"] and result["recording"]["ok"]
    console = args.console()
    console.print(as_table(result))
    if result["inference_ms"]["p50"] > SLOW_PERIODS * 1e3 / result["control_hz"]["asked"]:
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
    said: set[str] = set()
    for seed in range(args.seed, args.seed + 100 * args.episodes):
        env.reset(seed=seed)
        if env.instruction not in said and len(requests) < args.episodes:
            requests.append(Request(len(requests) + 1, seed, env.instruction, args.variant))
            said.add(env.instruction)
    env.close()
    return requests


def play(
    sections: dict[str, dict[str, Any]],
    run_dir: Path,
    requests: Sequence[Request],
    console: Console,
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
    """One episode; the live line says what is happening, a lasting line how it ended."""

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


def summarise(recordings: Sequence[Recording], reports: dict[str, Report]) -> Result:
    """The figures of the run, as the processes counted them."""
    control = reports["control"]
    policy = reports["policy"]
    published = sum(r.counters.get("frames_published", 0) for r in reports.values())
    success = sum(recording.success for recording in recordings)
    return {
        "ok": success > 0,
        "success": success,
        "episodes": len(recordings),
        "control_hz": {
            "asked": control.values.get("hz_asked", 0.0),
            "achieved": round(control.values.get("hz_achieved", 0.0), 3),
        },
        "inference_ms": percentiles(policy.latencies.get("inference.total", NO_TIMES)),
        "photon_to_action_ms": percentiles(control.latencies.get("photon_to_action", NO_TIMES)),
        "frames": {
            "published": published,
            "used": policy.counters.get("frames_used", 0),
            "stale": policy.counters.get("frames_stale", 0),
        },
        "commands": {name: control.counters.get(name, 0) for name in ("actions", "holds", "gated")},
        "outcomes": [
            {
                "instruction": recording.request.instruction,
                "seed": recording.request.seed,
                "success": recording.success,
                "steps": recording.steps,
                "seconds": round(recording.seconds, 2),
            }
            for recording in recordings
        ],
    }


def percentiles(summary: Summary) -> dict[str, float]:
    """p50, p99 and the largest [ms]."""
    return {name: round(getattr(summary, name), 1) for name in ("p50", "p99", "max")}


def as_table(result: Result) -> Table:
    """The card."""
    rate = result["control_hz"]
    thinking = result["inference_ms"]
    latency = result["photon_to_action_ms"]
    frames = result["frames"]
    sent = result["commands"]
    table = Table(title="trimvla demo", show_header=False, title_justify="left")
    table.add_row("tasks done", f"{result['success']} of {result['episodes']}")
    table.add_row("control rate", f"{rate['achieved']:.2f} Hz of {rate['asked']:g} Hz")
    table.add_row("inference", f"{thinking['p50']:.0f} ms (p99 {thinking['p99']:.0f} ms)")
    table.add_row("camera to command", f"{latency['p50']:.0f} ms (p99 {latency['p99']:.0f} ms)")
    table.add_row(
        "frames", f"{frames['published']} published, {frames['used']} used, {frames['stale']} stale"
    )
    table.add_row(
        "commands",
        f"{sent['actions']} actions, {sent['holds']} holds, {sent['gated']} changed by the gate",
    )
    table.add_row("film", str(result["video"]))
    if "recording" in result:
        table.add_row("recording", describe_recording(result["recording"]))
    return table


def describe_recording(recording: Result) -> str:
    """Where it is and what it lost, or why there is none."""
    if not recording["ok"]:
        return f"failed: {recording['error']}"
    return (
        f"{recording['file']}, {recording['mib']:.1f} MiB, {recording['dropped']} messages dropped"
    )
