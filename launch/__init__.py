"""Wiring: the command line, the process table and the programs it starts.

Only this package may import all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimvla.runtime import quiet
from trimvla.runtime.front_door import opened

if TYPE_CHECKING:
    from trimvla.launch.training.presets import TrainingPreset, training_presets

__all__ = [
    "TrainingPreset",
    "training_presets",
]

PUBLIC = {
    "TrainingPreset": "training.presets:TrainingPreset",
    "training_presets": "training.presets:training_presets",
}
"""Name -> module and attribute: what users import from here. Everything else is internal."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = opened(__name__, PUBLIC)

quiet.switch_off()  # before any library is imported that would report to its maker
