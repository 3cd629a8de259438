"""Policies as plain torch modules, with their checkpoints. No process, no socket.

A policy is loaded, measured on calibration frames, and trimmed by the plan that comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimvla.runtime import quiet
from trimvla.runtime.front_door import opened

if TYPE_CHECKING:
    from trimvla.policies.cogact.checkpoint import load as load_policy
    from trimvla.policies.families import family_of, find_preset
    from trimvla.policies.trimming.calibrate import calibration_of
    from trimvla.policies.trimming.planner import Request as PlanRequest
    from trimvla.policies.trimming.planner import make_plan
    from trimvla.policies.trimming.tokens import raster
    from trimvla.policies.trimming.trimmed import trim

__all__ = [
    "PlanRequest",
    "calibration_of",
    "family_of",
    "find_preset",
    "load_policy",
    "make_plan",
    "raster",
    "trim",
]

PUBLIC = {
    "load_policy": "cogact.checkpoint:load",
    "find_preset": "families:find_preset",
    "family_of": "families:family_of",
    "calibration_of": "trimming.calibrate:calibration_of",
    "PlanRequest": "trimming.planner:Request",
    "make_plan": "trimming.planner:make_plan",
    "trim": "trimming.trimmed:trim",
    "raster": "trimming.tokens:raster",
}
"""Name -> module and attribute: what users import from here. Everything else is internal."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = opened(__name__, PUBLIC)

quiet.switch_off()  # before any library is imported that would report to its maker
