"""The options of `trimvla ablate`: which rows, what a plan keeps, how much is played.

Knows their limits; opens nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.ablation.rows import DENSE, ROWS, Amounts, Row
from trimvla.launch.evaluation.env_args import EnvArgs
from trimvla.launch.outputs import Output
from trimvla.runtime.errors import ConfigError
from trimvla.sim.episodes import MAKERS


@dataclass(frozen=True)
class AblateArgs(EnvArgs):
    """Success, time and cost of a dense bundle, of every part of its trimming, and of the controls,
    in one run.
    """

    bundle: Positional[str] = "tabletop"
    """The dense bundle, with its checkpoint beside it."""

    env: str = "tabletop"
    """What is played, as `eval` knows it: tabletop, simpler:TASK (extra `simpler`), gymnasium:ID,
    or module:attribute of your own (docs/guides/own-environment.md).
    """

    rows: tuple[str, ...] = ()
    """These rows of the table only; the dense one is always there."""

    layers: int = 11
    """Language layers to keep."""

    mlp_keep: float = 0.75
    """Share of the MLP channels to keep."""

    tokens: int = 56
    """Visual tokens to keep."""

    after: int = 5
    """Kept language layers that still see every token."""

    cache_interval: int = 5
    """Run the head's blocks at every n-th DDIM step only."""

    milder_layers: int = 14
    """Layers of the milder plan."""

    milder_tokens: int = 112
    """Tokens of the milder plan."""

    milder_cache_interval: int = 5
    """`--cache-interval` of the milder plan."""

    episodes: int | None = None
    """Of the dense bundle and of the whole plan, on the same seeds (default: all official ones,
    else 300).
    """

    others: int = 100
    """Episodes of every other row: the first of these seeds."""

    seed: int | None = None
    """Of the first episode.

    Where there are official episodes, a seed means others than these; else it is 1000.
    """

    draw: int = 1000
    """Seed of what is drawn besides: calibration frames, random layers and tokens."""

    execute: int = 2
    """Steps of a chunk that are executed before the next look."""

    margin: float = 0.05
    """Loss of success that still counts as not inferior."""

    rounds: int = 50
    """Turns of every row at the clock."""

    warmup: int = 3
    """Turns that are not counted."""

    threads: int = 1
    """Threads of an operator, while the clock runs."""

    compiled: bool = True
    """Also compile the dense policy and the one under the whole plan (minutes)."""

    workers: int = 2
    """Processes that play episodes."""

    frames: int = 64
    """Calibration frames, drawn from demonstrations that are made for it."""

    work: Path = Path("runs/ablation")
    """Bundles and outcomes, so that a stopped run goes on."""

    out: Path = Path("benchmarks")
    """Where `ablation.json` and `ablation.png` go; of another environment than the tabletop,
    `ablation_TASK`.
    """

    page: Path | None = None
    """A text whose part between the two marks becomes the table."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        positive = ("episodes", "others", "execute", "rounds", "workers", "frames")
        wrong = [
            f"--{name}"
            for name in positive
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if wrong:
            raise ConfigError(f"expected at least 1 for {', '.join(wrong)}")
        if unknown := sorted(set(self.rows) - {row.name for row in ROWS}):
            raise ConfigError(f"expected --rows out of {[row.name for row in ROWS]}, got {unknown}")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        folders = (Output("--work", self.work, folder=True), Output("--out", self.out, folder=True))
        return *folders, Output("--page", self.page)

    @property
    def chosen(self) -> list[Row]:
        """The rows, in the order of the table."""
        return [row for row in ROWS if not self.rows or row.name in (DENSE, *self.rows)]

    @property
    def suffix(self) -> str:
        """Of the names of files: nothing for the tabletop, else _TASK."""
        words = re.split(r"[^\w.-]+", self.env)[1:]
        return "".join(f"_{word}" for word in words if word)

    @property
    def is_ours(self) -> bool:
        """Whether what is played is an environment of ours, with demonstrations."""
        return self.env.partition(":")[0] in MAKERS

    def amounts(self, row: Row) -> Amounts:
        """What the knobs of a row keep."""
        full = Amounts(self.layers, self.mlp_keep, self.tokens, self.after, self.cache_interval)
        if not row.milder:
            return full
        interval = self.milder_cache_interval
        return replace(
            full, layers=self.milder_layers, tokens=self.milder_tokens, cache_interval=interval
        )
