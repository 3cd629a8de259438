"""Whether a system served its robot as it should: what is missing at the end, in words.

Knows reports alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trimvla.runtime.bus.messages import Report


def shortfalls(
    reports: Iterable[Report], gone: Sequence[str], unwell: str, *, task: bool
) -> list[str]:
    """Why a run was none that one may rely on, the most important first; empty where all went as
    it should.

    Args:
        reports: every process's newest, from before all are stopped.
        gone: what ended for good, such as a recorder, while the others went on.
        unwell: why the robot had to hold at the end, or nothing.
        task: whether there was a task for the robot, so that control should have acted.
    """
    known = {report.process: report for report in reports}
    failed = [
        f"process '{r.process}': {r.reason or r.state}"
        for r in known.values()
        if r.state in ("failed", "fault")
    ]
    found = [unwell, *gone, *failed]
    control = known.get("control")
    if task and control is not None and not control.counters.get("actions", 0):
        why = f": {control.reason}" if control.reason else ""
        found.append(
            f"expected actions for the task, control sent none; it is '{control.state}'{why}"
        )
    return [text for text in found if text]
