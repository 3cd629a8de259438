"""Robots and cameras that need no hardware, on the same topics; rollouts; statistics.

Episodes of a policy in simulation, and what follows from their outcomes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimvla.runtime import quiet
from trimvla.runtime.front_door import opened

if TYPE_CHECKING:
    from trimvla.sim.episodes import make_task
    from trimvla.sim.evaluation.rollout import Setting, evaluate
    from trimvla.sim.evaluation.statistics import compare, wilson_interval
    from trimvla.sim.gymnasium_ids import TABLETOP, register
    from trimvla.sim.tabletop.demonstrations import make_shard

__all__ = [
    "TABLETOP",
    "Setting",
    "compare",
    "evaluate",
    "make_shard",
    "make_task",
    "register",
    "wilson_interval",
]

PUBLIC = {
    "make_task": "episodes:make_task",
    "Setting": "evaluation.rollout:Setting",
    "evaluate": "evaluation.rollout:evaluate",
    "compare": "evaluation.statistics:compare",
    "wilson_interval": "evaluation.statistics:wilson_interval",
    "register": "gymnasium_ids:register",
    "TABLETOP": "gymnasium_ids:TABLETOP",
    "make_shard": "tabletop.demonstrations:make_shard",
}
"""Name -> module and attribute: what users import from here. Everything else is internal."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = opened(__name__, PUBLIC)

quiet.switch_off()  # before any library is imported that would report to its maker
