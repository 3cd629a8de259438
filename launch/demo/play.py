"""The episodes of a demonstration: chosen, played on one running system, filmed.

Each seed's table and instruction come from the simulator; nothing is chosen but that no instruction
is shown twice while others are to be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from trimvla.launch.console import Console, Status, styled
from trimvla.launch.evaluation import video
from trimvla.launch.system.episodes import EpisodeClient, Recording, Request
from trimvla.launch.system.results import NO_TIMES
from trimvla.launch.system.setup.programs import programs
from trimvla.launch.system.setup.sections import Sections, reports_of
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.printable import printable

VIDEO_SIDE = 384  # pixels


def plan(episodes: int, first_seed: int, variant: str) -> list[Request]:
    """One table per episode, from consecutive seeds; a seed is passed over if its instruction was
    had already.
    """
    from trimvla.sim.tabletop.env import TabletopEnv

    env = TabletopEnv(variant=variant, observe=False)
    requests: list[Request] = []
    used: set[str] = set()
    for seed in range(first_seed, first_seed + 100 * episodes):
        env.reset(seed=seed)
        if env.instruction not in used and len(requests) < episodes:
            requests.append(Request(len(requests) + 1, seed, env.instruction, variant))
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
