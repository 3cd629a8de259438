"""Why a robot is held, in a few kinds that can be counted: reasons themselves hold numbers.

Knows the words of the chunk queue, the interlock, the gate and the control loop, and nothing else.
"""

from __future__ import annotations

OTHER = "other"

#   part of a reason -> its kind; the first that is found counts
KINDS: tuple[tuple[str, str], ...] = (
    ("control stops", "control stops"),
    ("the emergency stop", "emergency stop"),
    ("the deadman's switch", "dead-man switch"),
    ("by the operator", "operator"),
    ("the task", "no task"),
    ("no live task", "no task"),
    ("not armed for this task", "no task"),
    ("; refused: ", "image refused"),
    ("refused by the gate", "gate"),
    ("expected an action to be sent within", "sent too late"),
    ("does not follow its commands", "not followed"),
    ("robot/state", "robot state"),
    ("expected actions", "other action meaning"),
    ("no chunk yet", "no chunk"),
    ("expected an image of at most", "image too old"),
    (" is not due: row ", "chunk ran out"),
)


def hold_kind(reason: str) -> str:
    """The kind of a hold's reason; `other` for one that names a process or was never seen."""
    return next((kind for part, kind in KINDS if part in reason), OTHER)
