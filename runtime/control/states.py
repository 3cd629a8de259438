"""The states of a robot under control, and the table of transitions between them.

Pure: a table.

idle     not armed, or there is no live task
armed    may move, and waits for the first action of the task
running  the action that is due is sent, as the gate let it through
hold     there is no action to trust, nobody holds the deadman's switch or a process is gone: the
         fallback is sent
fault    the emergency stop, or something that must not go on: the fallback, until a person resets
         it

Only `act` leads to running, and only from a state that is armed or has been; only `reset` leads out
of fault, to idle.
"""

from __future__ import annotations

from typing import Literal, get_args

State = Literal["idle", "armed", "running", "hold", "fault"]
Event = Literal["estop", "failure", "reset", "arm", "disarm", "end", "release", "act", "lose"]
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)

# estop    the emergency stop is pressed, or it is required and has fallen silent
# failure  what must not go on: the gate has refused every action for too long
# reset    a person confirms that the cause of the fault is gone
# arm      a person, or with `arm = "auto"` a new task, lets the robot move
# disarm   a person does not
# end      the task is over, or another one began
# release  nobody holds the deadman's switch, or a process that the robot needs is gone
# act      there is an action that is due, fresh and let through by the gate
# lose     there is none
_ROWS: dict[State, tuple[State, ...]] = {
    #        estop    failure  reset      arm        disarm   end      release  act        lose
    "idle":
            ("fault", "fault", "idle",    "armed",   "idle",  "idle",  "idle",  "idle",    "idle"),
    "armed":
            ("fault", "fault", "armed",   "armed",   "idle",  "idle",  "armed", "running", "armed"),
    "running":
            ("fault", "fault", "running", "running", "idle",  "idle",  "hold",  "running", "hold"),
    "hold":
            ("fault", "fault", "hold",    "hold",    "idle",  "idle",  "hold",  "running", "hold"),
    "fault":
            ("fault", "fault", "idle",    "fault",   "fault", "fault", "fault", "fault",   "fault"),
}  # fmt: skip
TRANSITIONS: dict[tuple[State, Event], State] = {
    (state, event): target
    for state, row in _ROWS.items()
    for event, target in zip(EVENTS, row, strict=True)
}


def advance(state: State, event: Event) -> State:
    """The state that follows."""
    return TRANSITIONS[state, event]
