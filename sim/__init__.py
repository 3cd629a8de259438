"""Robots and cameras that need no hardware, on the same topics; rollouts; statistics."""

from __future__ import annotations

TABLETOP = "trimvla/Tabletop-v0"


def register() -> None:
    """Make `gymnasium.make("trimvla/Tabletop-v0")` work; calling it again changes nothing."""
    import gymnasium

    if TABLETOP not in gymnasium.registry:
        gymnasium.register(TABLETOP, entry_point="trimvla.sim.tabletop:TabletopEnv", max_episode_steps=None)
