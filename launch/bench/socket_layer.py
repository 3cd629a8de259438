"""Layer L3 of a benchmark: the process `policy` as `run` starts it, a frame published, its chunk
received.

This side plays cameras, robot and operator on the real topics; the process does not know that it is
measured. Only its guards against old images and slow starts are wide open. Knows sockets and one
process; nothing of percentiles.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimvla.launch.bench.turns import TOTAL, Times
from trimvla.launch.system.client import SystemClient, new_task
from trimvla.launch.system.run_dirs import temporary_run_dir
from trimvla.launch.system.setup.programs import programs
from trimvla.launch.system.supervisor import Supervisor
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.inputs_and_output import StateSpec
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState
from trimvla.runtime.bus.telemetry import REPORT_PERIOD_S
from trimvla.runtime.bus.topics import color
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns

CAMERA = "camera-{}"
PROCESS = "policy"
ANSWER = f"an answer of the process '{PROCESS}'"
SENDS = ("task", "robot/state")
POSITIONS = 6  # of a robot whose policy does not read them
READY_TIMEOUT_S = 120.0  # imports and model loading on a slow, busy machine
ANSWER_TIMEOUT_S = 60.0
RESEND_S = 2.0  # while connecting: who is not there yet receives nothing
SETTLE_S = 0.01  # the rest arrives before the first camera's image; it has sockets of its own
POLL_S = 0.2
WIDE_OPEN: dict[str, Any] = {
    "max_hz": 1000.0,
    "camera_timeout_s": 3600.0,
    "budget": {"frame_s": ANSWER_TIMEOUT_S, "skew_s": ANSWER_TIMEOUT_S},
}


@contextmanager
def socket_policy(
    bundle: Path,
    image: np.ndarray,
    instruction: str,
    *,
    backend: str = "onnxruntime",
    provider: str | None = None,
    threads: int = 1,
) -> Iterator[SocketPolicy]:
    """Start the process with this bundle; it stops at the end. `SocketPolicy.connect` waits for it.

    Args:
        bundle: its directory.
        image: uint8[h, w, 3], published again and again by every camera of the bundle.
        instruction: the task's.
        backend: what executes the stages; see `runtime.runner`.
        provider: what executes inside the backend.
        threads: of an operator.

    Raises:
        BundleError: its manifest cannot be read.
    """
    manifest = bundles.load(bundle, verify_hashes=False)
    cameras = cameras_of(manifest)
    section: dict[str, Any] = {
        "bundle": str(bundle.resolve()),
        "cameras": cameras,
        "backend": backend,
        "threads": threads,
    }
    section |= {} if provider is None else {"provider": provider}
    with ExitStack() as stack:
        run_dir = stack.enter_context(temporary_run_dir())
        parts = programs({PROCESS: section | WIDE_OPEN}, run_dir)
        group = Supervisor(parts, run_dir, restart=False)
        sends = (*SENDS, *map(color, cameras.values()))
        client = SystemClient(
            run_dir, sends=sends, receives=["chunk"], processes=[PROCESS], check=group.check
        )
        stack.enter_context(client)
        stack.enter_context(group)
        world = World(tuple(cameras.values()), image, resting_position(manifest.state))
        yield SocketPolicy(client, world, instruction)


@dataclass(frozen=True, eq=False)
class World:
    """What this side plays: the same image by every camera, and a robot that stands still."""

    cameras: tuple[str, ...]
    """The first one's images start the calls."""
    image: np.ndarray
    position: tuple[float, ...]


def cameras_of(manifest: Manifest) -> dict[str, str]:
    """The policy's name of each of its cameras -> this side's."""
    return {name: CAMERA.format(i) for i, name in enumerate(manifest.images.names)}


def resting_position(state: StateSpec | None) -> tuple[float, ...]:
    """Zeros, as many as the policy reads."""
    return (0.0,) * (POSITIONS if state is None else state.dim)


class SocketPolicy:
    """The other end of the process's sockets. Made by `socket_policy`."""

    def __init__(self, client: SystemClient, world: World, instruction: str) -> None:
        self._client = client
        self._world = world
        self._task = new_task(instruction, episode=0)
        self._sent_ns: dict[int, int] = {}
        self._next = 0
        self.resent = 0
        """Frames beyond the first of a turn; above 0 the machine was too busy to measure on."""
        self._back_ms: list[float] = []

    def connect(self) -> None:
        """Return when the process has answered a first time. Raises what `turn` raises."""
        self._client.until(self._started, READY_TIMEOUT_S, ANSWER)
        self.turn(0)
        self.resent = 0
        self._back_ms.clear()

    def _started(self) -> bool:
        return self._client.report(PROCESS).state != "starting"

    def turn(self, turn: int) -> Times:
        """L3: publish a frame, wait for its chunk.

        Raises NoAnswerError, or ProcessEndedError with its last words.
        """
        first = self._next
        resend_s = time.monotonic()
        latencies_ms: list[float] = []

        def received() -> bool:
            latencies_ms.extend(self._new_latencies(first))
            return bool(latencies_ms)

        def take_turn() -> None:
            nonlocal resend_s
            if time.monotonic() >= resend_s:
                self._send_frame()
                resend_s = time.monotonic() + RESEND_S
            self._client.turn(POLL_S)

        self._client.until(received, ANSWER_TIMEOUT_S, ANSWER, take_turn)
        self.resent += self._next - first - 1
        return {("L3", TOTAL): latencies_ms[0]}

    def _send_frame(self) -> None:
        """Task, state and the other cameras first, so that the first one's image can be acted on;
        its time is its publishing's.
        """
        first, *others = self._world.cameras
        image = self._world.image
        now = monotonic_ns()
        task = msgspec.structs.replace(self._task, time_ns=now)
        self._client.send("task", task)
        state = JointState(time_ns=now, position=self._world.position, gripper=1.0)
        self._client.send("robot/state", state)
        for camera in others:
            self._client.send(color(camera), Frame(camera, now, image))
        time.sleep(SETTLE_S)
        now = monotonic_ns()
        self._sent_ns[self._next] = now
        self._next = 1 + self._client.send(color(first), Frame(first, now, image))

    def _new_latencies(self, first: int) -> Iterator[float]:
        """Milliseconds from a frame of this turn to its chunk, where one has just come."""
        now = monotonic_ns()
        received = self._client["chunk"]
        chunk = received.message
        fresh = received.updated and isinstance(chunk, ActionChunk)
        if fresh and isinstance(chunk, ActionChunk) and chunk.frame_sequence >= first:
            self._back_ms.append((now - chunk.produced_ns) / NS_PER_MS)
            yield (now - self._sent_ns[chunk.frame_sequence]) / NS_PER_MS

    def parts(self) -> dict[str, float]:
        """Where the time of L3 went [ms], by the process's own clocks: medians of all turns."""
        self._client.receive(REPORT_PERIOD_S + POLL_S)
        latencies = self._client.report(PROCESS).latencies
        p50 = {name: summary.p50 for name, summary in latencies.items()}
        way = p50["travel"] + p50["pickup"]
        return {
            "frame out, and on its way": p50["travel"],
            "thread wakes, frame unpacked": p50["pickup"],
            "observation judged": max(0.0, p50["observation_age"] - way),
            "policy": p50["inference.total"],
            "chunk out, on its way, unpacked": float(np.median(self._back_ms)),
        }
