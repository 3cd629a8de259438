"""What a person adds about an environment that does not define it by itself. Knows words and
numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trimvla.runtime.errors import ConfigError

RENDER = "render"  # as a camera: what `render()` returns
MAX_STEPS = 1000  # of an episode that neither the environment nor a person limits


@dataclass(frozen=True)
class EnvOptions:
    """Of a gymnasium environment; our own tasks define all of this themselves."""

    camera: str | None = None
    """The observation's key with the policy's image, `a.b` for an inner one, or `render`."""
    instruction: str | None = None
    """The instruction, where the environment has none."""
    success_reward: float | None = None
    """Terminated with at least this reward counts as success; where `info` has no success."""
    max_steps: int | None = None
    """Steps after which an episode is over."""
    control_hz: float | None = None
    """Steps per second, where the environment has none: the bundle's."""

    def __post_init__(self) -> None:
        if self.instruction is not None and not self.instruction.strip():
            raise ConfigError(f"expected words for --instruction, got {self.instruction!r}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"expected at least 1 for --max-steps, got {self.max_steps}")
        if self.success_reward is not None and not math.isfinite(self.success_reward):
            raise ConfigError(f"expected a number for --success-reward, got {self.success_reward}")

    def given(self) -> list[str]:
        """The options that a person gave, as they stand on the command line."""
        names = ("camera", "instruction", "success_reward", "max_steps")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
