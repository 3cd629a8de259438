"""The process `policy` with a policy that can be spoilt while it runs, or with a stand-in that only
takes its time.

Loop, sockets and ages are the runtime's own `PolicyLoop`; only what thinks is another. For faults,
load and tests.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from trimvla.runtime.backends.failures import call_failure
from trimvla.runtime.bundle.action_meaning import ActionMeaning, meaning_of
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.bus.messages import MAX_ROWS, ActionChunk, Frame, Message
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference import rungs
from trimvla.runtime.inference.policy import PolicyResult
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_like import Known, PolicyLike
from trimvla.runtime.inference.policy_loop import PolicyLoop
from trimvla.runtime.inference.robot_inputs import ONE_CAMERA, RobotInputs
from trimvla.runtime.inference.scheduler import InferenceScheduler, warm_up
from trimvla.runtime.preprocess.observation import Observation
from trimvla.sim.robots.faults import Fault, Switch

FAILURES = {
    "fail": "Non-zero status code returned while running Gather node",
    "lost": "CUDA failure 700: an illegal memory access was encountered",
}
SPOILS = {"nan": math.nan, "inf": math.inf, "range": 1000.0}
SWEEP_NS = 3_000_000_000  # from one turn to the next
GARBAGE = b"\xc1" * 1000
STAND_IN_KINDS: tuple[ActionKind, ...] = ("delta",) * 6 + ("gripper",)
WORK = 8192  # numbers that the stand-in computes with, on one core


@dataclass(frozen=True)
class FaultyPolicyConfig(PolicyConfig):
    """As the policy's, and:"""

    stand_in_ms: float | None = None
    """Instead of the bundle, compute without sense for so long, on one core, and move a little."""
    stand_in_hz: float = 5.0
    """Rows per second of its chunks."""
    stand_in_rows: int = 16
    """Of each of its chunks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.stand_in_hz > 0 and 1 <= self.stand_in_rows <= MAX_ROWS):
            got = f"{self.stand_in_hz} and {self.stand_in_rows}"
            raise ConfigError(
                f"expected 'stand_in_hz' > 0 and 'stand_in_rows' from 1 to {MAX_ROWS}, got {got}"
            )


class DummyPolicy:
    """Takes its time on a core, and gives small motions."""

    def __init__(self, milliseconds: float, rows: int = 16) -> None:
        self._milliseconds = milliseconds
        self._rows = rows
        self._numbers = np.linspace(0.0, 1.0, WORK)

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> PolicyResult:
        """As `Policy.infer`; what it computes is of no use, and nothing guides it."""
        start = time.monotonic()
        while (took := (time.monotonic() - start) * 1e3) < self._milliseconds:
            np.sin(self._numbers, out=self._numbers)
        last = seed if isinstance(seed, int) else seed[-1]
        turn = last / 10 + np.arange(self._rows)[:, None] / 5 + np.arange(len(STAND_IN_KINDS))
        actions = 0.005 * np.sin(turn)
        actions[:, -1] = 1.0
        sample = actions.astype(np.float32)
        return PolicyResult(sample, sample, actions, {"total": took})


class FaultInjectedPolicy:
    """Another policy's chunks, as the fault that is on makes them."""

    def __init__(self, policy: PolicyLike, switch: Switch) -> None:
        self._policy = policy
        self._switch = switch
        self._sweep = Sweep()

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> PolicyResult:
        """As `Policy.infer`."""
        fault = self._switch.fault()
        if fault is not None and fault.kind in FAILURES:
            raise call_failure("onnxruntime", RuntimeError(FAILURES[fault.kind]))
        result = self._policy.infer(observation, noise=noise, seed=seed, known=known)
        assert isinstance(result, PolicyResult)
        direction = self._sweep.direction(fault, monotonic_ns())
        if fault is not None and fault.kind == "sweep":
            return _with_first(result, direction * fault.amount)
        return result if fault is None else spoil(result, fault)


class Sweep:
    """Which way a sweep goes: another than the last one at first, and to and fro from then on."""

    def __init__(self) -> None:
        self._direction = -1.0
        self._since_ns: int | None = None

    def direction(self, fault: Fault | None, now_ns: int) -> float:
        """1 or -1, for the fault as it is now."""
        if fault is None or fault.kind != "sweep":
            self._since_ns = None
        elif self._since_ns is None or now_ns - self._since_ns > SWEEP_NS:
            self._since_ns = now_ns
            self._direction = -self._direction
        return self._direction


def _with_first(result: PolicyResult, value: float) -> PolicyResult:
    """A result with one value in the first dimension of all rows."""
    actions = result.actions.copy()
    actions[:, 0] = value
    return dataclasses.replace(result, actions=actions)


def spoil(result: PolicyResult, fault: Fault) -> PolicyResult:
    """A result with its fault; one that is slow has taken its time when this returns."""
    if fault.kind == "slow":
        time.sleep(max(0.0, fault.amount - result.milliseconds["total"] / 1e3))
        return result
    return _with_first(result, SPOILS[fault.kind]) if fault.kind in SPOILS else result


class FaultyChunks(Publisher):
    """Publishes chunks as the fault that is on makes them: of another rate, other kinds, or none at
    all.
    """

    def __init__(self, run_dir: Path, switch: Switch) -> None:
        super().__init__(run_dir, topic("chunk"))
        self._switch = switch

    def send(self, message: Message | Frame) -> None:
        """See `Publisher.send`."""
        fault = self._switch.fault()
        if fault is not None and isinstance(message, ActionChunk):
            if fault.kind == "garble":
                self._socket.send_multipart([self.topic.name.encode(), GARBAGE])
                self.sent += 1
                return
            message = alter(message, fault)
        super().send(message)


def alter(chunk: ActionChunk, fault: Fault) -> ActionChunk:
    """The chunk, with what it claims of its actions changed."""
    if fault.kind == "rate":
        return msgspec.structs.replace(chunk, control_hz=chunk.control_hz * fault.amount)
    if fault.kind == "kinds":
        kinds = tuple("absolute" if kind == "delta" else kind for kind in chunk.kinds)
        return msgspec.structs.replace(chunk, kinds=kinds)
    return chunk


@dataclass(frozen=True)
class Loaded:
    """What thinks, by name, the best first; what a call takes on each [s], and what the actions
    mean.
    """

    policies: Mapping[str, PolicyLike]
    costs_s: Sequence[float]
    meaning: ActionMeaning
    statistics_key: str = ""
    robot: RobotInputs = ONE_CAMERA


def load(config: FaultyPolicyConfig) -> Loaded:
    """The stand-in, or the bundle or bundles as the process `policy` opens them, warm.

    Raises what that raises.
    """
    if config.stand_in_ms is not None:
        stand_in = DummyPolicy(config.stand_in_ms, config.stand_in_rows)
        return Loaded(
            {config.bundle: stand_in}, (config.stand_in_ms / 1e3,), _stand_in_meaning(config)
        )
    policies = rungs.load_rungs(config)
    manifests = [policy.manifest for policy in policies.values()]
    action = manifests[0].action
    costs_s = [warm_up(policy, config.rtc.enabled) for policy in policies.values()]
    return Loaded(
        policies,
        costs_s,
        meaning_of(action),
        action.statistics_key,
        RobotInputs.of(manifests, config),
    )


def action_meanings(config: FaultyPolicyConfig) -> dict[str, ActionMeaning]:
    """As `rungs.action_meanings`."""
    if config.stand_in_ms is not None:
        return {"stand-in": _stand_in_meaning(config)}
    return rungs.action_meanings(config)


def robot_inputs(config: FaultyPolicyConfig) -> RobotInputs:
    """As `rungs.robot_inputs`."""
    if config.stand_in_ms is not None:
        return ONE_CAMERA
    return rungs.robot_inputs(config)


def needs(config: FaultyPolicyConfig) -> tuple[str, ...]:
    """As `rungs.needs`."""
    return rungs.topics_of(config, robot_inputs(config))


def _stand_in_meaning(config: FaultyPolicyConfig) -> ActionMeaning:
    return ActionMeaning(STAND_IN_KINDS, config.stand_in_hz)


def run(config: FaultyPolicyConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `policy`, until `stop`."""
    reporter = Reporter(run_dir, Telemetry("policy"))
    loaded = load(config)
    switch = Switch(run_dir, "policy")
    spoilt = {name: FaultInjectedPolicy(policy, switch) for name, policy in loaded.policies.items()}
    scheduler = InferenceScheduler(
        spoilt, config.thought, costs_s=loaded.costs_s, kinds=loaded.meaning.kinds
    )
    cameras = [topic(color(camera)) for camera in config.all_cameras]
    inputs = Subscriber(run_dir, [*cameras, topic("task"), topic("robot/state")])
    reporter.inputs = inputs
    chunks = FaultyChunks(run_dir, switch)
    refusals = Publisher(run_dir, topic("refusal"))
    loop = PolicyLoop(
        scheduler,
        inputs,
        chunks,
        reporter.telemetry,
        meaning=loaded.meaning,
        statistics_key=loaded.statistics_key,
        config=config,
        refusals=refusals,
        robot=loaded.robot,
    )
    reporter.telemetry.state = "idle"
    try:
        while not stop.is_set():
            loop.step()
            reporter.beat()
    finally:
        for closing in (reporter, chunks, refusals, inputs):
            closing.close()
