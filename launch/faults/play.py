"""Plays one row of the fault table on a running system: break, watch, mend, wait until the robot
moves again.

Times are from the moment at which the fault took effect. Knows what must follow; the monitor judges
the commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from trimvla.launch.faults.session import Session
from trimvla.launch.faults.table import BOUND_S, HZ, Row
from trimvla.runtime.bus.messages import Command
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns, to_ns
from trimvla.runtime.errors import TrimvlaError
from trimvla.sim.robots.faults import seen_ns

START_S = 90.0  # imports and model loading on a slow, busy machine
SHOWN_S = 60.0  # for a report or a refused process to show what the robot need not notice
RECOVERY_S = 60.0
GONE_S = 20.0  # for the processes of a supervisor that was killed
FLOWS_S = 1.2  # of actions only, before something is broken
ARM_PERIOD_S = 1.0


@dataclass
class Outcome:
    """What happened in one row; times [ms] are from the fault on, `recovery_ms` from its end."""

    fault: str
    must: str
    ok: bool = False
    detected_ms: float | None = None
    detected_by: str = ""
    state: str = ""
    actions: int = 0
    """Sent while the fault lasted."""
    holds: int = 0
    actions_after_bound: int = 0
    recovery_ms: float | None = None
    broken: list[str] = field(default_factory=list)
    """Commands that must not have been sent, and what was left behind."""


class NotStartedError(TrimvlaError):
    """The system that was to be broken does not run."""


class Play:
    """One row on one system."""

    def __init__(self, row: Row, session: Session) -> None:
        self._row = row
        self._scene = session.scene
        self._monitor = session.monitor
        self._began_ns = session.began_ns
        self.outcome = Outcome(row.name, row.must)
        self._armed_ns = 0
        self.first = 0
        """Where this row's violations begin among the monitor's; those before it belong to what
        lies between rows.
        """

    def run(self) -> Outcome:
        """Everything; the outcome."""
        row = self._row
        if row.at_start:
            self._notice(self._began_ns)
        self._wait_for_actions()
        self.first = len(self._monitor.violations)
        broken_ns = self._break()
        if not row.at_start:
            self._notice(broken_ns)
        mended_ns = self._mend(broken_ns)
        self._recover(mended_ns)
        if row.mends_itself:
            self._count(broken_ns, self._monitor.last_ns())
        self.outcome.broken += [found.words for found in self._monitor.violations[self.first :]]
        self.outcome.ok = passed(row, self.outcome)
        return self.outcome

    def _wait_for_actions(self) -> None:
        """Until nothing but actions is sent; a person arms where only a person may."""
        if not self._monitor.until(self._flows, START_S):
            control = self._monitor.report("control")
            what = f"control is {control.state} ({control.reason})"
            raise NotStartedError(
                f"'{self._row.name}': expected actions within {START_S:g} s; {what}"
            )

    def _flows(self) -> bool:
        """Whether nothing but actions was sent for a while, at about the rate that was promised."""
        self._arm_if_idle()
        sent = self._monitor.since(monotonic_ns() - to_ns(FLOWS_S))
        enough = len(sent) >= 0.7 * FLOWS_S * HZ
        return enough and all(command.kind == "action" for command in sent)

    def _arm_if_idle(self) -> None:
        """The operator's part, where the desk gives the task: arm once the policy has chunks for
        it.
        """
        desk = self._scene.desk
        ready = self._monitor.report("policy").state == "running"
        idle = self._monitor.report("control").state == "idle"
        due = monotonic_ns() - self._armed_ns > to_ns(ARM_PERIOD_S)
        if desk is not None and desk.instruction and ready and idle and due:
            self._armed_ns = monotonic_ns()
            desk.request("arm")

    def _break(self) -> int:
        """Do it; when it took effect: a process that is to go wrong begins with its next image or
        call.
        """
        scene = self._scene
        scene.broken_ns = monotonic_ns()
        self._row.do(scene)
        self._monitor.until(lambda: seen_ns(scene.run_dir) is not None, START_S)
        return max(scene.broken_ns, seen_ns(scene.run_dir) or 0)

    def _mend(self, broken_ns: int) -> int:
        """Let the fault last until well after the bound, then undo it; when that was."""
        if self._row.mends_itself:
            return monotonic_ns()
        lasts_s = max(BOUND_S, self._row.bound_s) + 4 / HZ
        end_ns = broken_ns + to_ns(lasts_s)
        self._monitor.until(lambda: monotonic_ns() > end_ns, lasts_s)
        self._count(broken_ns, monotonic_ns())
        mended_ns = monotonic_ns()
        self._row.undo(self._scene)
        return mended_ns

    def _notice(self, broken_ns: int) -> None:
        """When and by what it was noticed."""

        def noticed() -> bool:
            sign = self._first_sign(broken_ns)
            if sign is not None:
                self.outcome.detected_ms = round(max(0, sign[0] - broken_ns) / NS_PER_MS, 1)
                self.outcome.detected_by = sign[1]
            return sign is not None

        self._monitor.until(noticed, SHOWN_S)

    def _first_sign(self, broken_ns: int) -> tuple[int, str] | None:
        """Time and words of the first sign; None while there is none."""
        row = self._row
        if row.must in ("robot holds", "robot waits"):
            arm = self._monitor.report("arm")
            held = arm.state == "holding" and arm.time_ns >= broken_ns
            return (arm.time_ns, "the arm's own watchdog, or a last hold") if held else None
        if row.must in ("go on", "refuse"):
            shown = row.shows is not None and row.shows(self._scene, self._monitor.report)
            words = "report or log" if row.must == "go on" else (self._scene.refused or [""])[-1]
            return (monotonic_ns(), words) if shown else None
        if row.must == "stop":
            control = self._monitor.report("control")
            stopped = control.state in ("idle", "armed", "fault")
            return (control.time_ns, f"{control.state}: {control.reason}") if stopped else None
        signs = self._monitor.since(broken_ns, "action" if row.must == "gate" else "hold")
        sign: Command | None = next((command for command in signs if command.reason), None)
        return None if sign is None else (sign.time_ns, sign.reason)

    def _count(self, broken_ns: int, end_ns: int) -> None:
        """What was sent while the fault lasted, and the state that it led to."""
        outcome = self.outcome
        must = self._row.must
        sent = [c for c in self._monitor.since(broken_ns) if c.time_ns <= end_ns]
        actions = [command for command in sent if command.kind == "action"]
        outcome.actions = len(actions)
        outcome.holds = len(sent) - len(actions)
        bound_ns = broken_ns + to_ns(self._row.bound_s)
        outcome.actions_after_bound = sum(command.time_ns > bound_ns for command in actions)
        who = "arm" if must in ("robot holds", "robot waits") else "control"
        state = self._monitor.report(who).state
        outcome.state = f"{who}: {'hold, then running' if must == 'hold at times' else state}"

    def _recover(self, mended_ns: int) -> None:
        """Wait until the robot moves as before, or, where nobody commands it any more, until nobody
        is left.
        """
        outcome = self.outcome
        if self._row.must == "robot holds":
            if not self._monitor.until(lambda: not self._scene.pids(), GONE_S):
                outcome.broken.append(f"processes are left: {self._scene.pids()}")
            return
        if self._row.must in ("go on", "gate", "refuse"):
            outcome.recovery_ms = 0.0
            return
        actions = partial(self._monitor.since, mended_ns, "action")
        if self._monitor.until(lambda: bool(actions()), RECOVERY_S):
            outcome.recovery_ms = round((actions()[0].time_ns - mended_ns) / NS_PER_MS, 1)


def passed(row: Row, outcome: Outcome) -> bool:
    """Whether all that must follow did."""
    if outcome.detected_ms is None or outcome.broken:
        return False
    in_time = (
        row.must in ("go on", "gate", "refuse")
        or outcome.detected_ms <= max(BOUND_S, row.bound_s) * 1e3
    )
    quiet = row.must not in ("hold", "stop", "robot holds") or outcome.actions_after_bound == 0
    return in_time and quiet and (row.must == "robot holds" or outcome.recovery_ms is not None)
