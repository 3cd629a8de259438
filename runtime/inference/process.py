"""The process `policy`: newest image and task in, action chunk out, as often as it can.

Loads and warms up under a time limit, opens the sockets and runs the loop until it is stopped.
Never part of a control tick. Knows how the parts are put together; what a part does, it does not.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from trimvla.runtime.bundle.action_meaning import meaning_of
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Reporter, Telemetry
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_loop import PolicyLoop
from trimvla.runtime.inference.robot_inputs import RobotInputs
from trimvla.runtime.inference.rungs import (
    action_meanings,
    check_instruction,
    load_and_warm_up,
    needs,
    robot_inputs,
)
from trimvla.runtime.inference.scheduler import InferenceScheduler
from trimvla.runtime.inference.start import StartInTime

# what the checks of a system ask a process's module for, before anything is started
__all__ = ["PolicyConfig", "action_meanings", "check_instruction", "needs", "robot_inputs", "run"]


def run(config: PolicyConfig, run_dir: Path, stop: threading.Event) -> None:
    """The process `policy`: load, warm up, then act on images until `stop`.

    Raises BundleError or BackendError if the bundle cannot run or hangs, CameraError if the camera
    never starts.
    """
    telemetry = Telemetry("policy")
    reporter = Reporter(run_dir, telemetry)
    starting = StartInTime(
        partial(load_and_warm_up, config), config.ready_timeout_s, "policy.ready_timeout_s"
    )

    def beat() -> None:
        telemetry.reason = starting.doing
        reporter.beat()

    try:
        started = starting.wait(stop, beat)
    except BaseException:
        reporter.close()
        raise
    if started is None:
        reporter.close()
        return
    policies, costs_s = started
    manifests = [policy.manifest for policy in policies.values()]
    first = manifests[0]
    action = first.action
    robot = RobotInputs.of(manifests, config)
    scheduler = InferenceScheduler(policies, config.thought, costs_s=costs_s, kinds=action.kinds)
    telemetry.state = "idle"
    telemetry.reason = ""
    cameras = [topic(color(camera)) for camera in config.all_cameras]
    inputs = Subscriber(run_dir, [*cameras, topic("task"), topic("robot/state")])
    reporter.inputs = inputs
    chunks = Publisher(run_dir, topic("chunk"))
    refusals = Publisher(run_dir, topic("refusal"))
    loop = PolicyLoop(
        scheduler,
        inputs,
        chunks,
        telemetry,
        meaning=meaning_of(action),
        statistics_key=action.statistics_key,
        config=config,
        refusals=refusals,
        size=first.images.shape,
        robot=robot,
    )
    try:
        while not stop.is_set():
            loop.step()
            reporter.beat()
    finally:
        for closing in (reporter, chunks, refusals, inputs, *policies.values()):
            closing.close()
