"""The process `policy` with a policy that can be spoilt while it runs, or with a stand-in that only takes its time.

Loop, sockets and ages are the runtime's own `PolicyLoop`; only what thinks is another. For faults, load and tests.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimvla.runtime.backend_failures import call_failure
from trimvla.runtime.bus import Publisher, Subscriber
from trimvla.runtime.policy import Policy, PolicyResult
from trimvla.runtime.policy_process import Infers, PolicyConfig, PolicyLoop
from trimvla.runtime.telemetry import Reporter, Telemetry
from trimvla.runtime.topics import color, topic
from trimvla.sim.faults import Fault, Switch

FAILURES = {
    "fail": "Non-zero status code returned while running Gather node",
    "lost": "CUDA failure 700: an illegal memory access was encountered",
}
SPOILS = {"nan": math.nan, "inf": math.inf, "range": 1000.0}
HORIZON, DIM = 16, 7
WORK = 8192  # numbers that the stand-in computes with, on one core


@dataclass(frozen=True)
class FaultyPolicyConfig(PolicyConfig):
    """As the policy's, and:"""

    stand_in_ms: float | None = None
    """Instead of the bundle, compute without sense for so long, on one core, and move a little."""
    stand_in_hz: float = 5.0
    """Rows per second of its chunks."""


class StandIn:
    """Takes its time on a core, and gives small motions."""

    def __init__(self, milliseconds: float) -> None:
        self._milliseconds = milliseconds
        self._numbers = np.linspace(0.0, 1.0, WORK)

    def infer(self, image: np.ndarray, instruction: str, *, seed: tuple[int, ...]) -> PolicyResult:
        """As `Policy.infer`; what it computes is of no use."""
        start = time.monotonic()
        while (took := (time.monotonic() - start) * 1e3) < self._milliseconds:
            np.sin(self._numbers, out=self._numbers)
        turn = seed[-1] / 10 + np.arange(HORIZON)[:, None] / 5 + np.arange(DIM)
        actions = 0.005 * np.sin(turn)
        actions[:, -1] = 1.0
        sample = actions.astype(np.float32)
        return PolicyResult(sample, sample, actions, {"total": took})


class Spoilt:
    """Another policy's chunks, as the fault that is on makes them."""

    def __init__(self, policy: Infers, switch: Switch) -> None:
        self._policy, self._switch = policy, switch

    def infer(self, image: np.ndarray, instruction: str, *, seed: tuple[int, ...]) -> PolicyResult:
        """As `Policy.infer`."""
        fault = self._switch.fault()
        if fault is not None and fault.kind in FAILURES:
            raise call_failure("onnxruntime", RuntimeError(FAILURES[fault.kind]))
        result = self._policy.infer(image, instruction, seed=seed)
        assert isinstance(result, PolicyResult)
        return result if fault is None else spoil(result, fault)


def spoil(result: PolicyResult, fault: Fault) -> PolicyResult:
    """A result with its fault; one that is slow has taken its time when this returns."""
    if fault.kind == "slow":
        extra_ms = (fault.amount - 1) * result.milliseconds["total"]
        time.sleep(max(0.0, extra_ms) / 1e3)
        return result
    actions = result.actions.copy()
    actions[:, 0] = SPOILS.get(fault.kind, actions[:, 0])
    return dataclasses.replace(result, actions=actions)


def load(config: FaultyPolicyConfig) -> tuple[Infers, float]:
    """What thinks, and its rows per second."""
    if config.stand_in_ms is not None:
        return StandIn(config.stand_in_ms), config.stand_in_hz
    policy = Policy.load(config.bundle, backend=config.backend, provider=config.provider, threads=config.threads)
    policy.infer(np.zeros((64, 64, 3), np.uint8), "warm up")
    return policy, policy.manifest.action.control_hz


def run(config: FaultyPolicyConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `policy`, until `stop`."""
    reporter = Reporter(run_dir, Telemetry("policy"))
    policy, control_hz = load(config)
    cameras = [topic(color(camera)) for camera in (config.camera, *config.more_cameras)]
    inputs = Subscriber(run_dir, [*cameras, topic("task"), topic("robot/state")])
    reporter.inputs = inputs
    chunks, refusals = Publisher(run_dir, topic("chunk")), Publisher(run_dir, topic("refusal"))
    loop = PolicyLoop(
        Spoilt(policy, Switch(run_dir, "policy")),
        inputs,
        chunks,
        reporter.telemetry,
        control_hz=control_hz,
        config=config,
        refusals=refusals,
    )
    reporter.telemetry.state = "idle"
    try:
        while not stop.is_set():
            loop.step()
            reporter.beat()
    finally:
        for closing in (reporter, chunks, refusals, inputs):
            closing.close()
