"""Chaos: a whole system that is killed, stopped, slowed, starved and lied to at random, judged by a
safety monitor.

    python -m tests.chaos --seconds 1200 --seed 1

Real processes, real signals, real sockets, two busy loops beside them. Every command is judged from
outside, by its own times. At the end nothing may be left: no process, descriptor, thread, socket or
directory more than at the start. The same seed gives the same faults in the same order; when
exactly they fall depends on the machine. Prints progress on stderr and one JSON object at the end;
exit status 1 if anything was violated or left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from trimvla.launch.faults.actions import OTHER_TASK, TASK, Scene
from trimvla.launch.faults.desk import Desk
from trimvla.launch.faults.safety_monitor import SafetyMonitor
from trimvla.launch.faults.table import CAMERAS, PROMISE, sections
from trimvla.launch.system.child import Child
from trimvla.runtime.bundle import manifest
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns, to_ns
from trimvla.sim.robots.faults import Fault, write_faults

HZ = 10.0
OBSERVED = ("policy", "control", "arm")
STOPPABLE = ("control", "policy", "camera-front", "camera-wrist", "supervisor", "arm")
KILLABLE = (*STOPPABLE, "control", "policy", "camera-front")
BUSY_LOOPS = 2
TRIES = 2  # of a person, to set a robot going again
START_S = 120.0  # on two cores that are busy with other things
PAUSE_S = (0.2, 2.5)  # between two faults
LAST_S = (0.05, 3.0)  # for which a fault lasts
EPISODE_S = 20.0
PATIENCE_S = 1.0  # of a person who sees that the robot is in fault
ESTOP_S = 2 / HZ + 0.1  # from a press to the last action
TURN_S = 0.2
BUSY = "while True: pass"
SLEEPY_S = 0.02  # a slowed process runs and stands for so long in turn


@dataclass
class Result:
    """What happened."""

    seed: int
    seconds: float = 0.0
    ok: bool = False
    commands: int = 0
    actions: int = 0
    holds: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    """Of the whole system, after its supervisor, its control or its arm was killed."""
    violations: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What was there at the end and not at the start."""


class System:
    """`trimvla run` and an arm beside it, started again when they end."""

    def __init__(self, run_dir: Path, bundle: str) -> None:
        self.run_dir = run_dir
        self.scene = Scene(run_dir)
        self.restarts = -2  # the first starts are none
        self._run: Child | None = None
        self._arm: Child | None = None
        system = sections(bundle, hz=HZ)
        system["control"]["interlock"] = {"arm": "auto", "estop": True}
        self._files = {
            "run": self._write("run.msgpack", system),
            "arm": self._write(
                "arm.msgpack", {"arm": {"process": "sim-arm", "watchdog_s": 3 / HZ}}
            ),
        }

    def _write(self, name: str, settings: dict[str, Any]) -> str:
        path = self.run_dir / name
        path.write_bytes(msgspec.msgpack.encode(settings))
        return str(path)

    def keep_alive(self) -> None:
        """Start what is not running."""
        where = ["--run-dir", str(self.run_dir)]
        if self._arm is None or self._arm.status() is not None:
            words = ["process", "arm", "--system", self._files["arm"], "--supervised", *where]
            self._arm = self._start("arm", words)
        if self._run is None or self._run.status() is not None:
            self._run = self._start("run", ["run", self._files["run"], *where])

    def _start(self, name: str, words: list[str]) -> Child:
        self.restarts += 1
        command = [sys.executable, "-m", "trimvla.launch.cli", *words]
        return Child(name, command, self.run_dir / f"{name}.log")

    def pids(self) -> dict[str, int]:
        """Of everything that runs, by name."""
        found = self.scene.pids()
        for name, child in (("supervisor", self._run), ("arm", self._arm)):
            if child is not None and child.status() is None:
                found[name] = child.pid
        return found

    def stop(self) -> None:
        """End both, as Ctrl-C does."""
        for child in (self._run, self._arm):
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)
                child.request_stop()
        for child in (self._run, self._arm):
            if child is not None and not child.wait(time.monotonic() + 30):
                child.terminate()


@dataclass(order=True)
class Undo:
    """What ends a fault, and when [s]."""

    due_s: float
    act: Callable[[], None] = field(compare=False)


class Chaos:
    """Draws faults and undoes them in time."""

    def __init__(self, system: System, desk: Desk, rng: random.Random) -> None:
        self.system = system
        self.desk = desk
        self.rng = rng
        self._undo: list[Undo] = []
        self._faults: dict[str, Fault] = {}
        self.counts: Counter[str] = Counter()
        self.pressed: list[tuple[int, int]] = []
        """From and until when the emergency stop was pressed [ns]."""
        self.log: list[str] = []

    def settle(self, monitor: SafetyMonitor) -> None:
        """Wait until the arm moves again without any fault, with a new task and after a person's
        reset; a person whose reset came too early, or behind the task, asks again.
        """

        def flows() -> bool:
            self.system.keep_alive()
            sent = monitor.since(monotonic_ns() - to_ns(1.0))
            return len(sent) > HZ / 2 and all(command.kind == "action" for command in sent)

        for _ in range(TRIES):
            self.desk.request("reset")
            self.desk.begin(TASK)
            if monitor.until(flows, START_S):
                return
        control = monitor.report("control")
        raise RuntimeError(
            f"expected the arm to move; control is {control.state} ({control.reason})"
        )

    def strike(self) -> None:
        """One fault, drawn by weight."""
        kinds = (
            self._kill,
            self._stop,
            self._slow,
            self._lie,
            self._stall,
            self._press,
            self._instruct,
        )
        act = self.rng.choices(kinds, weights=(1, 6, 2, 8, 2, 1, 1))[0]
        act()

    def undo(self, *, everything: bool = False) -> None:
        """End the faults that have lasted long enough."""
        for each in sorted(self._undo):
            if everything or time.monotonic() >= each.due_s:
                self._undo.remove(each)
                each.act()

    def _note(self, words: str) -> None:
        self.counts[words.split(":", maxsplit=1)[0]] += 1
        self.log.append(f"{monotonic_ns() / NS_PER_MS:.0f} {words}")

    def _later(self, act: Callable[[], None], longest_s: float = LAST_S[1]) -> float:
        lasts_s = self.rng.uniform(LAST_S[0], longest_s)
        self._undo.append(Undo(time.monotonic() + lasts_s, act))
        return lasts_s

    def _signal(self, name: str, number: signal.Signals) -> bool:
        pid = self.system.pids().get(name)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def _kill(self) -> None:
        name = self.rng.choice(KILLABLE)
        number = self.rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGHUP))
        if name != "supervisor":
            number = signal.SIGKILL
        if self._signal(name, number):
            self._note(f"{number.name} {name}")

    def _stop(self) -> None:
        name = self.rng.choice(STOPPABLE)
        pid = self.system.pids().get(name)
        if pid is not None and self._signal(name, signal.SIGSTOP):
            lasts_s = self._later(lambda: _signal_pid(pid, signal.SIGCONT))
            self._note(f"SIGSTOP {name}: for {lasts_s:.2f} s")

    def _slow(self) -> None:
        """Runs and stands in turn."""
        name = self.rng.choice(STOPPABLE)
        pid = self.system.pids().get(name)
        if pid is None:
            return
        done = threading.Event()

        def alternate() -> None:
            while not done.is_set():
                _signal_pid(pid, signal.SIGSTOP)
                time.sleep(SLEEPY_S)
                _signal_pid(pid, signal.SIGCONT)
                done.wait(SLEEPY_S)

        thread = threading.Thread(target=alternate, daemon=True)
        thread.start()

        def end() -> None:
            done.set()
            thread.join()

        lasts_s = self._later(end)
        self._note(f"slowed {name}: for {lasts_s:.2f} s")

    def _lie(self) -> None:
        """A fault inside a camera, the policy or the arm."""
        lies: dict[str, tuple[tuple[str, float], ...]] = {
            "policy": (
                ("nan", 0),
                ("inf", 0),
                ("range", 0),
                ("slow", 1.2),
                ("garble", 0),
                ("rate", 2),
                ("kinds", 0),
            ),
            "arm": (("mute", 0), ("repeat", 0), ("stuck", 0)),
        }
        camera = (
            ("drop", 0.5),
            ("delay", self.rng.uniform(0.1, 3.0)),
            ("freeze", 0),
            ("buffers", self.rng.randint(2, 6)),
            ("reencode", 0),
            ("clock", self.rng.uniform(-5.0, 5.0)),
            ("corrupt", 0),
        )
        name = self.rng.choice((*CAMERAS, "policy", "arm"))
        kind, amount = self.rng.choice(lies.get(name, camera))
        self._faults[name] = Fault(kind, amount)  # pyright: ignore[reportArgumentType]
        write_faults(self.system.run_dir, self._faults)

        def end() -> None:
            self._faults.pop(name, None)
            write_faults(self.system.run_dir, self._faults)

        lasts_s = self._later(end)
        self._note(f"{kind} in {name}: {amount:.2f} for {lasts_s:.2f} s")

    def _stall(self) -> None:
        """Cameras and the robot's state at once."""
        for name in (*CAMERAS, "arm"):
            self._faults[name] = Fault("mute") if name == "arm" else Fault("drop", 1.0)
        write_faults(self.system.run_dir, self._faults)

        def end() -> None:
            for name in (*CAMERAS, "arm"):
                self._faults.pop(name, None)
            write_faults(self.system.run_dir, self._faults)

        lasts_s = self._later(end)
        self._note(f"cameras and state stall: for {lasts_s:.2f} s")

    def _press(self) -> None:
        """The emergency stop; afterwards a person resets, and a new task arms."""
        begin_ns = monotonic_ns()
        self.desk.pressed = True
        self.desk.press(True)

        def end() -> None:
            self.pressed.append((begin_ns, monotonic_ns()))
            self.desk.pressed = False
            self.desk.press(False)
            self.desk.request("reset")
            self.desk.begin(TASK)

        lasts_s = self._later(end)
        self._note(f"emergency stop: for {lasts_s:.2f} s")

    def _instruct(self) -> None:
        other = OTHER_TASK if self.desk.instruction == TASK else TASK
        self.desk.instruct(other)
        self._note("another instruction")


def _signal_pid(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def possessions(pids: dict[str, int]) -> dict[str, int]:
    """Descriptors and threads of every process, by `name what`."""
    found: dict[str, int] = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            found[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a list of numbers
            found[f"{name} threads"] = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    return found


def growth(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What has become more."""
    return [
        f"{name}: {before[name]} -> {n}" for name, n in after.items() if n > before.get(name, n)
    ]


def temporary_directories() -> set[str]:
    """Those that our programs make."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("trimvla-*")}


def play(seconds: float, seed: int, bundle: str, loops: int = BUSY_LOOPS) -> Result:
    """Everything; what happened."""
    result = Result(seed)
    me = {"chaos": os.getpid()}
    warm_up()
    directories = temporary_directories()
    mine = possessions(me)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        run_dir = Path(name)
        write_faults(run_dir, {})
        system = System(run_dir, bundle_at(HZ, Path(bundle), run_dir / "bundle"))
        with judged(system) as (monitor, desk):
            chaos = Chaos(system, desk, random.Random(seed))
            rage(seconds, monitor, chaos, loops, result)
        judge(monitor, chaos, result)
        result.restarts = system.restarts
        result.left += [f"process {name}" for name in system.pids()]
        result.left += [f"socket {path.name}" for path in run_dir.iterdir() if path.is_socket()]
    result.left += [f"directory {name}" for name in temporary_directories() - directories]
    result.left += growth(mine, possessions(me))
    result.seconds = round(time.monotonic() - begin, 1)
    result.ok = not result.violations and not result.left
    return result


def warm_up() -> None:
    """What this process keeps once it has used sockets: ZeroMQ's own threads and descriptors."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, SafetyMonitor(Path(name), PROMISE):
        time.sleep(TURN_S)


@contextmanager
def judged(system: System) -> Iterator[tuple[SafetyMonitor, Desk]]:
    """The system with its desk and its monitor; all is stopped at the end."""
    promise = replace(PROMISE, hz=HZ)
    with SafetyMonitor(system.run_dir, promise, OBSERVED) as monitor, Desk(system.run_dir) as desk:
        desk.pressed = False
        try:
            yield monitor, desk
        finally:
            system.stop()


def rage(seconds: float, monitor: SafetyMonitor, chaos: Chaos, loops: int, result: Result) -> None:
    """Fault after fault, between two moments of peace in which everybody's possessions are
    counted.
    """
    system = chaos.system
    chaos.settle(monitor)
    with busy_loops(loops):
        before = possessions(system.pids())
        strike_on(time.monotonic() + seconds, monitor, chaos)
        chaos.undo(everything=True)
        chaos.settle(monitor)
        result.left += growth(before, possessions(system.pids()))


def judge(monitor: SafetyMonitor, chaos: Chaos, result: Result) -> None:
    """What the monitor saw; the faults in their order where it saw a violation."""
    result.commands = len(monitor.commands)
    result.actions = sum(command.kind == "action" for command in monitor.commands)
    result.holds = result.commands - result.actions
    result.faults = dict(chaos.counts)
    result.violations = [f"{v.time_ns / NS_PER_MS:.0f} {v.words}" for v in monitor.violations]
    result.violations += after_presses(monitor, chaos.pressed)
    if result.violations:
        print("\n".join(chaos.log), file=sys.stderr)


def bundle_at(hz: float, bundle: Path, copy: Path) -> str:
    """A copy of a bundle whose rows are due at another rate."""
    shutil.copytree(bundle, copy)
    path = copy / "manifest.json"
    found = json.loads(path.read_text())
    found["action"]["control_hz"] = hz
    path.write_text(json.dumps(found))
    return str(copy)


def strike_on(end: float, monitor: SafetyMonitor, chaos: Chaos) -> None:
    """Fault after fault until `end` on the monotonic clock [s]; at times a new episode, after a
    person's reset.
    """
    next_fault = next_line = time.monotonic()
    next_episode = time.monotonic() + EPISODE_S
    while (now := time.monotonic()) < end:
        chaos.system.keep_alive()
        chaos.undo()
        if now >= next_fault:
            chaos.strike()
            next_fault = time.monotonic() + chaos.rng.uniform(*PAUSE_S)
        if chaos.desk.pressed is False and monitor.report("control").state == "fault":
            next_episode = min(next_episode, now + PATIENCE_S)
        if now >= next_episode:
            chaos.desk.request("reset")
            chaos.desk.begin(chaos.rng.choice((TASK, OTHER_TASK)))
            next_episode = time.monotonic() + EPISODE_S
        if now >= next_line:
            next_line = now + 10
            count = f"{len(monitor.commands)} commands, {sum(chaos.counts.values())} faults"
            print(
                f"{end - now:6.0f} s left, {count}, {len(monitor.violations)} violations",
                file=sys.stderr,
            )
        monitor.until(lambda: False, TURN_S)


def after_presses(monitor: SafetyMonitor, pressed: list[tuple[int, int]]) -> list[str]:
    """Actions while the emergency stop was pressed, from two periods on."""
    return [
        f"{command.time_ns / NS_PER_MS:.0f} command {command.sequence}: an action"
        f" {(command.time_ns - begin_ns) / NS_PER_MS:.0f} ms after the emergency stop"
        for begin_ns, end_ns in pressed
        for command in monitor.since(begin_ns, "action")
        if begin_ns + to_ns(ESTOP_S) < command.time_ns < end_ns
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", default="tabletop-trimmed")
    parser.add_argument("--loops", type=int, default=BUSY_LOOPS)
    words = parser.parse_args()
    bundle = str(manifest.resolve(words.bundle).resolve())
    result = play(words.seconds, words.seed, bundle, words.loops)
    print(json.dumps(asdict(result)))
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
