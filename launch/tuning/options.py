"""The options of `trimvla tune`: how fast, on what, judged by what.

Knows their limits; opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.evaluation.env_args import EnvArgs
from trimvla.launch.outputs import Output
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TuneArgs(EnvArgs):
    """Bundles that are as fast as this device needs, with proof that the robot still succeeds."""

    bundle: Positional[str] = "tabletop"
    """The dense bundle, with its checkpoint beside it."""

    out: Path
    """A folder for bundles, front.json, front.png and system.toml; a killed run goes on there."""

    speedup: tuple[float, ...] = ()
    """So many times as fast as the dense bundle, on this device. (repeatable)"""

    budget_ms: tuple[float, ...] = ()
    """What one action chunk may take on this device [ms]. (repeatable)"""

    points: int = 8
    """Points of the front, those of the budgets among them."""

    env: str | None = None
    """What is played for the proof, as `eval` knows it; without one the front has how far actions
    move on frames, and nothing of success."""

    calibration: Path | None = None
    """Frames, as `trimvla trim` takes them (default: of fresh demonstrations, where the policy has
    a simulator)."""

    frames: int = 64
    """Calibration frames."""

    cache_interval: int = 5
    """The head's blocks run at every n-th sampler step, in every trimmed point."""

    episodes: int = 100
    """Episodes of every point and of the dense bundle, on the same seeds."""

    seed: int = 40_000
    """Of the first episode: none that a choice was made on."""

    execute: int = 2
    """Steps of a chunk that are executed before the next look."""

    margin: float = 0.05
    """Loss of success that still counts as not inferior."""

    draw: int = 0
    """Seed of calibration frames and noise."""

    priced: int = 10
    """Bundles that the device is measured with before prices are worked out."""

    rounds: int = 20
    """Turns of every bundle at the clock."""

    warmup: int = 2
    """Turns that are not counted."""

    backend: str = "onnxruntime"
    """What executes the stages, as `bench` knows it."""

    threads: int = 1
    """Threads of an operator, while the clock runs."""

    workers: int = 2
    """Processes that play episodes."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        positive = ("points", "frames", "cache_interval", "episodes", "rounds", "workers")
        low = [name for name in positive if getattr(self, name) < 1]
        if low:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in low)
            raise ConfigError(f"expected at least 1 for {names}")
        if self.priced < 4:
            raise ConfigError(f"expected at least 4 for --priced, got {self.priced}")
        slow = [value for value in self.speedup if not value > 1.0]
        if slow:
            raise ConfigError(f"expected more than 1 for --speedup, got {slow[0]:g}")
        none = [value for value in self.budget_ms if not value > 0.0]
        if none:
            raise ConfigError(f"expected more than 0 ms for --budget-ms, got {none[0]:g}")
        if len(self.speedup) + len(self.budget_ms) > self.points:
            raise ConfigError(
                f"expected at least as many --points as budgets, got {self.points} for"
                f" {len(self.speedup) + len(self.budget_ms)}"
            )

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out, folder=True),)
