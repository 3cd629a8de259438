"""Robots and cameras that need no hardware, on the same topics; rollouts; statistics."""

from __future__ import annotations

from trimvla.runtime import quiet

quiet.switch_off()  # before any library is imported that would report to its maker

TABLETOP = "trimvla/Tabletop-v0"


def register() -> None:
    """Make `gymnasium.make("trimvla/Tabletop-v0")` work; calling it again changes nothing."""
    from gymnasium.envs import registration

    if TABLETOP not in registration.registry:
        registration.register(TABLETOP, entry_point="trimvla.sim.tabletop.env:TabletopEnv")
