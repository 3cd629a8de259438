"""Our environments under ids of gymnasium's, for `gymnasium.make`."""

from __future__ import annotations

TABLETOP = "trimvla/Tabletop-v0"


def register() -> None:
    """Make `gymnasium.make("trimvla/Tabletop-v0")` work; calling it again changes nothing.

    Example:
        >>> import gymnasium
        >>> from trimvla.sim import TABLETOP, register
        >>> register()
        >>> with gymnasium.make(TABLETOP) as env:
        ...     observation, info = env.reset(seed=1000)
        ...     info["instruction"]
        'put the green can on the blue plate'
    """
    from gymnasium.envs import registration

    if TABLETOP not in registration.registry:
        registration.register(TABLETOP, entry_point="trimvla.sim.tabletop.env:TabletopEnv")
