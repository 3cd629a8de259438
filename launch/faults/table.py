"""The table of faults, and the systems that they happen to: real processes, real signals, real
sockets.

Each row defines what is done, what must follow, and how it is undone. Amounts are stated against
the budget that they must break, never against the speed of a machine. Knows no result; what is done
is in `actions`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from trimvla.launch.faults import actions as acts
from trimvla.launch.faults.actions import Action, Reports, Scene, switch
from trimvla.launch.faults.safety_monitor import Promise
from trimvla.launch.system.setup.sections import Sections
from trimvla.sim.robots.faults import Fault, Kind

HZ = 5.0  # as the shipped bundles' actions
FRAME_S = 0.3
FROZEN_S = 0.3
STATE_S = 0.3
MAX_AGE_S = 0.8
LOW = (-0.05,) * 3 + (-0.4,) * 3 + (0.0,)
HIGH = (0.05,) * 3 + (0.4,) * 3 + (1.0,)
MAX_CHANGE = (0.04,) * 3 + (0.3,) * 3 + (float("inf"),)
KINDS = ("delta",) * 6 + ("gripper",)
WORKSPACE = 1.0
LAG_S = 0.5  # so far the arm may be behind its commands, at full speed
PROMISE = Promise(LOW, HIGH, MAX_CHANGE, HZ, MAX_AGE_S, KINDS, WORKSPACE)
BOUND_S = MAX_AGE_S + 2 / HZ
"""From a fault to the hold: the age budget and two control periods."""
STOP_S = 2 / HZ + 0.1
"""From a person's stop to the last action: two periods, and a tick that is late."""
ALIKE_S = BOUND_S + 0.8
"""Where only the robot's motion shows that images are old: also the time in which it gains speed
and moves by 0.1 m.
"""
CAMERAS = ("front", "wrist")
CAMERA_HZ = 20.0

Expectation = Literal[
    "hold", "hold at times", "go on", "gate", "stop", "robot holds", "robot waits", "refuse"
]
# hold           no action from the bound on, until the fault is undone
# hold at times  a hold within the bound; what comes back by itself may act again, and so may what
#                leads back to where the robot's state stands
# go on          nothing that the robot notices
# gate           actions go on, brought back to the limits
# stop           no action from two periods on, until a person lets the robot move again
# robot holds    nobody commands any more; the robot stops by itself, and no process is left
# robot waits    nobody commands for a while; the robot stops by itself, and goes on with new images
# refuse         a request is refused with a clear error; the robot goes on meanwhile
System = Literal["steady", "desk", "port", "orphan", "hangup"]


def sections(bundle: str, system: System = "steady", hz: float = HZ) -> Sections:
    """The system's processes, for a bundle of this rate.

    The arm is a process of its own, as a driver is.
    """
    cameras = {
        f"camera-{name}": {"process": "faulty-camera", "name": name, "hz": CAMERA_HZ}
        for name in CAMERAS
    }
    policy = {
        "process": "faulty-policy",
        "bundle": bundle,
        "more_cameras": list(CAMERAS[1:]),
        "budget": {"frame_s": FRAME_S, "skew_s": 0.15, "frozen_s": FROZEN_S},
        "max_hz": 20.0,
    }
    limits = {
        "low": LOW,
        "high": HIGH,
        "max_change": MAX_CHANGE,
        "workspace_low": (-WORKSPACE,) * 6 + (-float("inf"),),
        "workspace_high": (WORKSPACE,) * 6 + (float("inf"),),
    }
    control: dict[str, Any] = {
        "hz": hz,
        "state_s": STATE_S,
        "limits": limits,
        "queue": {"max_age_s": MAX_AGE_S},
        "follow": {"lag_s": LAG_S},
    }
    if system == "desk":
        control["interlock"] = {"arm": "operator", "estop": True, "deadman": True}
    return {**cameras, "policy": policy, "control": control}


@dataclass(frozen=True)
class Row:
    """One fault."""

    name: str
    must: Expectation
    do: Action
    undo: Action = acts.MEND
    system: System = "steady"
    shows: Callable[[Scene, Reports], bool] | None = None
    """How reports, logs or a refused process show what no command does."""
    within_s: float = 0.0
    """From the fault to the last action, where that is not the bound of `must`."""

    @property
    def bound_s(self) -> float:
        """From the fault to the last action: at most this long."""
        return self.within_s or (STOP_S if self.must == "stop" else BOUND_S)

    @property
    def at_start(self) -> bool:
        """Whether it is there from the system's start on."""
        return self.do is acts.nothing

    @property
    def mends_itself(self) -> bool:
        """Whether nobody has to undo it."""
        return self.undo is acts.nothing


def _slow_camera(scene: Scene, report: Reports) -> bool:
    return report("policy").values.get("camera_hz", CAMERA_HZ) < 0.85 * CAMERA_HZ


def _both(fault: Fault) -> Action:
    return switch(**dict.fromkeys(CAMERAS, fault))


def _policy(kind: Kind, amount: float = 0.0) -> Action:
    return switch(policy=Fault(kind, amount))


def _front(kind: Kind, amount: float = 0.0) -> Action:
    return switch(front=Fault(kind, amount))


def _arm(kind: Kind, amount: float = 0.0) -> Action:
    return switch(arm=Fault(kind, amount))


def _moving(**faults: Fault) -> Action:
    """Faults while the arm moves at full speed: what they hide is a distance, not a time."""
    return switch(**faults, policy=Fault("sweep", HIGH[0]))


STOP = signal.SIGSTOP
GO = signal.SIGCONT
KILL = signal.SIGKILL
ROWS = (
    # images
    Row("camera killed", "hold at times", acts.send("camera-front", KILL), acts.nothing),
    Row(
        "camera stopped (SIGSTOP)",
        "hold",
        acts.send("camera-front", STOP),
        acts.send("camera-front", GO),
    ),
    Row("camera frozen: same pixels, new sequence", "hold", _front("freeze")),
    Row(
        "camera repeats five old images in turn",
        "hold",
        _moving(front=Fault("buffers", 5)),
        within_s=ALIKE_S + 1.0,
    ),
    Row(
        "camera frozen, each image compressed anew",
        "hold",
        _moving(front=Fault("reencode")),
        within_s=ALIKE_S,
    ),
    Row(
        "camera frozen under a clock that runs",
        "hold",
        _moving(front=Fault("overlay")),
        within_s=ALIKE_S,
    ),
    Row("camera frozen but for one pixel", "hold", _moving(front=Fault("pixel"))),
    Row("30 % of frames dropped", "go on", _both(Fault("drop", 0.3)), shows=_slow_camera),
    Row("frames delayed by 500 ms", "hold", _both(Fault("delay", 0.5))),
    Row("frames delayed by 2 s", "hold", _both(Fault("delay", 2.0))),
    Row("two cameras skewed by 300 ms", "hold", switch(wrist=Fault("delay", 0.3))),
    Row("driver's clock is 2 s slow", "hold", _front("driver", -2.0)),
    Row("driver's clock is 2 s fast", "hold", _front("driver", 2.0)),
    Row("driver hands out images 1.1 s old", "hold", _front("delay", 1.1)),
    Row("clock of the camera host off by an hour", "hold", _both(Fault("clock", 3600.0))),
    Row("corrupt payloads", "hold", _both(Fault("corrupt"))),
    # actions
    Row("NaN in actions", "hold", _policy("nan")),
    Row("infinite actions", "hold", _policy("inf")),
    Row("actions out of range", "gate", _policy("range")),
    Row("actions of another rate", "hold", _policy("rate", 2.0)),
    Row("absolute actions for a robot of deltas", "hold", _policy("kinds")),
    Row("garbage instead of chunks", "hold", _policy("garble"), shows=acts.garbage_is_counted),
    # the policy
    Row("policy killed", "hold at times", acts.send("policy", KILL), acts.nothing),
    Row("policy stopped (SIGSTOP)", "hold", acts.send("policy", STOP), acts.send("policy", GO)),
    Row("a call takes longer than the age budget", "hold at times", _policy("slow", 2 * MAX_AGE_S)),
    Row("the policy's device is lost", "hold", _policy("lost")),
    Row(
        "policy killed when its task is 11 s old",
        "hold at times",
        acts.kill_late("policy", 11.0),
        acts.nothing,
    ),
    # the robot
    Row("joint state lost", "hold", _arm("mute")),
    # control
    Row(
        "control stopped for 1.5 s (SIGSTOP)",
        "robot waits",
        acts.send("control", STOP),
        acts.send("control", GO),
    ),
    # other senders and files
    Row(
        "a second publisher of chunks",
        "refuse",
        acts.second_publisher("chunk"),
        shows=acts.was_refused,
    ),
    Row(
        "a second publisher of commands",
        "refuse",
        acts.second_publisher("command"),
        shows=acts.was_refused,
    ),
    Row(
        "a run directory that others may write to",
        "refuse",
        acts.foreign_run_dir,
        shows=acts.was_refused,
    ),
    Row(
        "wrong tokens flood a served policy",
        "go on",
        acts.flood_tokens,
        acts.nothing,
        shows=acts.right_token_is_answered,
    ),
    Row(
        "disk full while recording", "go on", acts.fill_disk, acts.nothing, shows=acts.not_recorded
    ),
    # last of their system: a person resets, and from then on a task that was lost needs a person to
    # arm it again
    Row(
        "joint state repeats with new times",
        "hold at times",
        _moving(arm=Fault("repeat")),
        acts.mend_and_reset,
    ),
    Row(
        "the robot does not follow its commands",
        "hold",
        _moving(arm=Fault("stuck")),
        acts.mend_and_reset,
        within_s=ALIKE_S,
    ),
    # people; the desk is the operator's
    Row("emergency stop pressed for 60 ms", "stop", acts.press_briefly, acts.reset_and_arm, "desk"),
    Row(
        "pressed once among 400 Hz of not pressed",
        "stop",
        acts.press_in_a_storm,
        acts.reset_and_arm,
        "desk",
    ),
    Row("emergency stop falls silent", "stop", acts.silence_estop, acts.reset_and_arm, "desk"),
    Row(
        "dead-man switch released for 60 ms",
        "hold at times",
        acts.release_briefly,
        acts.nothing,
        "desk",
    ),
    Row("dead-man switch falls silent", "hold", acts.silence_deadman, acts.hold_deadman, "desk"),
    Row("disarm, said once by a new sender", "stop", acts.disarm_once, acts.arm, "desk"),
    Row("another instruction under the same episode", "stop", acts.instruct, acts.arm, "desk"),
    Row(
        "the task falls silent",
        "stop",
        acts.silence_task,
        acts.begin_and_arm,
        "desk",
        within_s=BOUND_S,
    ),
    # the system
    Row("port taken at start", "go on", acts.nothing, acts.nothing, "port", acts.no_metrics),
    Row("control killed", "robot holds", acts.send("control", KILL), acts.nothing, "port"),
    Row("supervisor killed", "robot holds", acts.signal_supervisor(KILL), acts.nothing, "orphan"),
    Row(
        "the terminal hangs up (SIGHUP)",
        "robot holds",
        acts.signal_supervisor(signal.SIGHUP),
        acts.nothing,
        "hangup",
    ),
)
