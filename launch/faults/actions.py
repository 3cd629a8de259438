"""What is done to a running system: signals, switches, other senders, and what people do at the
desk.

Every action takes the scene and returns at once or within a second. Knows processes and messages;
not what must follow.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trimvla.launch.faults.desk import SWITCH_PERIOD_S, TASK_PERIOD_S, Desk
from trimvla.launch.faults.token_flood import ANSWER_S, worst_wait
from trimvla.runtime.bus.messages import Report
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.record.recording import partial
from trimvla.sim.robots.faults import Fault, write_faults

RECORDING = "faults.mcap"
TASK = "pick up the red cube"
OTHER_TASK = "pick up the blue cube"
STORM_HZ = 1000
STORM_S = 1.0

Reports = Callable[[str], Report]


@dataclass
class Scene:
    """Where a row's system runs, who supervises it, and its desk."""

    run_dir: Path
    supervisor: int = 0
    desk: Desk | None = None
    broken_ns: int = 0
    """When the fault took effect, where that is not the moment of the call."""
    bundle: str = ""
    waited_s: float | None = None
    """How long a client with the right token waited at most, once that was measured."""
    refused: list[str] = field(default_factory=list)
    """Last words of processes that were refused."""

    def people(self) -> Desk:
        """The desk, for the rows that need one."""
        if self.desk is None:
            raise ValueError("expected a scene with a desk")
        return self.desk

    def pids(self) -> dict[str, int]:
        """Its processes by name, found by their command lines; the arm is not of the system."""
        found: dict[str, int] = {}
        for path in Path("/proc").iterdir():
            words = _command_line(path)
            if path.name.isdigit() and str(self.run_dir) in words and "process" in words:
                found[words[words.index("process") + 1]] = int(path.name)
        return {name: pid for name, pid in found.items() if name != "arm"}


def _command_line(path: Path) -> list[str]:
    try:
        return (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # no process, or no longer
        return []


Action = Callable[[Scene], None]


def nothing(scene: Scene) -> None:
    """It was done when the system started, or undoes itself."""


def send(process: str, number: signal.Signals) -> Action:
    """A signal to a process; it takes effect when it is sent, not when the search for it began."""

    def action(scene: Scene) -> None:
        pid = scene.pids()[process]
        scene.broken_ns = monotonic_ns()
        os.kill(pid, number)

    return action


def signal_supervisor(number: signal.Signals) -> Action:
    """A signal not to one of the processes but to the one that started them."""
    return lambda scene: os.kill(scene.supervisor, number)


def kill_late(process: str, after_s: float) -> Action:
    """SIGKILL when the task has lasted for so long."""

    def action(scene: Scene) -> None:
        time.sleep(max(0.0, after_s - _task_age_s(scene)))
        send(process, signal.SIGKILL)(scene)

    return action


def _task_age_s(scene: Scene) -> float:
    """The supervisor's age, which gives the task from its start on."""
    started = float(
        Path(f"/proc/{scene.supervisor}/stat").read_text().rsplit(")", 1)[1].split()[19]
    )
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def switch(**faults: Fault) -> Action:
    """Faults turned on in running processes, and all others off."""
    return lambda scene: write_faults(scene.run_dir, faults)


MEND = switch()


def mend_and_reset(scene: Scene) -> None:
    """Undo the fault; then a person, who has looked at the robot, resets and arms."""
    MEND(scene)
    time.sleep(0.5)  # for the arm's next states
    reset_and_arm(scene)


def fill_disk(scene: Scene) -> None:
    """No file of the recorder may grow any more: its next write fails, as on a full disk."""
    recorder = scene.pids()["recorder"]
    size = partial(scene.run_dir / RECORDING).stat().st_size
    scene.broken_ns = monotonic_ns()
    resource.prlimit(recorder, resource.RLIMIT_FSIZE, (size, size))


def not_recorded(scene: Scene, report: Reports) -> bool:
    """Whether the recorder reports that it failed."""
    return report("recorder").state == "failed"


def no_metrics(scene: Scene, report: Reports) -> bool:
    """Whether the metrics page's log has the error that it cannot listen."""
    log = scene.run_dir / "metrics.log"
    return log.exists() and "error: metrics: cannot listen" in log.read_text()


PUBLISH = (
    "import sys; from pathlib import Path; from trimvla.runtime.bus.sockets import Publisher; from"
    " trimvla.runtime.bus.topics import topic; from trimvla.runtime.errors import"
    " TrimvlaError\ntry: Publisher(Path(sys.argv[1]), topic(sys.argv[2])).close()\nexcept"
    " TrimvlaError as error: sys.exit(f'error: {error}')"
)


def second_publisher(name: str) -> Action:
    """Another process that wants to publish on a topic that has its publisher."""
    return lambda scene: _start(scene, [sys.executable, "-c", PUBLISH, str(scene.run_dir), name])


def foreign_run_dir(scene: Scene) -> None:
    """A camera in a run directory to which others may write."""
    shared = scene.run_dir / "shared"
    shared.mkdir(exist_ok=True)
    shared.chmod(0o777)
    words = ["camera", "--name", "open", "--kind", "synthetic", "--run-dir", str(shared)]
    _start(scene, [sys.executable, "-m", "trimvla.launch.cli", *words])


def _start(scene: Scene, command: list[str]) -> None:
    """Run it beside the system, and keep its last words if it is refused."""

    def wait() -> None:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        words = ended.stderr.strip().splitlines() or [""]
        status = f"status {ended.returncode}: {words[-1]}"
        scene.refused.append(
            words[-1] if ended.returncode and words[-1].startswith("error: ") else status
        )

    scene.refused.clear()
    threading.Thread(target=wait, daemon=True).start()


def flood_tokens(scene: Scene) -> None:
    """Strangers flood a served policy with wrong tokens; a client with the right one sends a
    request meanwhile.
    """

    def measure() -> None:
        folder = scene.run_dir / "served"
        folder.mkdir(mode=0o700, exist_ok=True)
        scene.waited_s = worst_wait(scene.bundle, folder)

    scene.waited_s = None
    threading.Thread(target=measure, daemon=True).start()


def right_token_is_answered(scene: Scene, report: Reports) -> bool:
    """Whether the client with the right token never waited longer than it may."""
    return scene.waited_s is not None and scene.waited_s <= ANSWER_S


def was_refused(scene: Scene, report: Reports) -> bool:
    """Whether what was started ended with one clear error."""
    return bool(scene.refused) and scene.refused[-1].startswith("error: ")


def garbage_is_counted(scene: Scene, report: Reports) -> bool:
    """Whether control reports that it refused messages on `chunk`."""
    return report("control").counters.get("refused.chunk", 0) > 0


def press_briefly(scene: Scene) -> None:
    """A second sender of the emergency stop: pressed for 60 ms, between two others' "not
    pressed".
    """
    with Desk(scene.run_dir) as second:
        _until_connected()
        scene.broken_ns = monotonic_ns()
        second.press(True, "a second sender")
        time.sleep(0.06)
        second.press(False, "a second sender")
        time.sleep(0.1)


def press_in_a_storm(scene: Scene) -> None:
    """One press among a thousand messages a second of the opposite."""
    with Desk(scene.run_dir) as second:
        _until_connected()
        begin = time.monotonic()
        pressed = False
        while (elapsed := time.monotonic() - begin) < STORM_S:
            press = not pressed and elapsed > STORM_S / 2
            if press:
                pressed = True
                scene.broken_ns = monotonic_ns()
            second.press(press, "a second sender")
            time.sleep(1 / STORM_HZ)


def _until_connected() -> None:
    """Readers find a new sender within a moment."""
    time.sleep(0.5)


def silence_estop(scene: Scene) -> None:
    """Nothing more from the emergency stop."""
    scene.people().pressed = None


def release_briefly(scene: Scene) -> None:
    """The dead-man switch, released for 60 ms."""
    scene.people().hold(False)
    time.sleep(0.06)
    scene.people().hold(True)


def silence_deadman(scene: Scene) -> None:
    """Nothing more from the dead-man switch."""
    scene.people().held = None


def hold_deadman(scene: Scene) -> None:
    """It is held again."""
    scene.people().held = True


def disarm_once(scene: Scene) -> None:
    """One word of a sender that was just started, as a person would from a shell."""
    words = ["operator", "disarm", "--run-dir", str(scene.run_dir)]
    subprocess.run([sys.executable, "-m", "trimvla.launch.cli", *words], timeout=60, check=True)
    scene.broken_ns = monotonic_ns()


def instruct(scene: Scene) -> None:
    """Another instruction; the episode's number stays."""
    desk = scene.people()
    desk.instruct(OTHER_TASK if desk.instruction == TASK else TASK)


def silence_task(scene: Scene) -> None:
    """Nobody wants anything any more."""
    scene.people().withdraw()


def arm(scene: Scene) -> None:
    """A person lets the robot move."""
    scene.people().request("arm")


def reset_and_arm(scene: Scene) -> None:
    """A person confirms that the cause is gone, and lets the robot move."""
    desk = scene.people()
    if desk.pressed is None and desk.held is not None:
        desk.pressed = False
        time.sleep(3 * SWITCH_PERIOD_S)
    desk.request("reset")
    desk.request("arm")


def begin_and_arm(scene: Scene) -> None:
    """A new task, and a person who lets the robot move."""
    desk = scene.people()
    desk.begin(TASK)
    time.sleep(2 * TASK_PERIOD_S)
    desk.request("arm")
