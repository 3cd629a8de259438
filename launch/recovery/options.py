"""The options of `trimvla recover`. Knows numbers and names; no policy and no file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.evaluation.env_args import EnvArgs
from trimvla.launch.outputs import Output
from trimvla.runtime.errors import ConfigError

PARTS = ("language", "vision", "head")
RATES = {"language": 5e-4, "vision": 2.5e-4}  # the encoders do not bear the decoder's
HEAD_RATE = 3e-4
MINUTES = 6.0


@dataclass(frozen=True, kw_only=True)
class Args(EnvArgs):
    """Give back what trimming lost: train a trimmed policy against the dense one, without labels.

    Stop it at any time; the same command goes on.
    """

    source: Positional[Path]
    """What the plan was made for: a run folder of `trimvla train`, a bundle with its checkpoint
    beside it (by path, or a shipped one by name), or an official checkpoint's folder (then --preset
    is needed).
    """

    plan: Path
    """The plan, made by `trimvla trim`."""

    out: Path
    """Where the patch goes, a safetensors file."""

    env: str | None = None
    """Frames of this environment, as `eval` knows it: its expert plays (else the bundle), and the
    trimmed policy itself."""

    calibration: Path | None = None
    """Instead, calibration data, or a recording (*.mcap) whose frames were seen while a task was
    held.
    """

    frames: int = 1024
    """Images to train on."""

    own: float = 0.25
    """With --env: share of them that the trimmed policy reaches itself, from 0 to 1."""

    held_out: int = 128
    """Further images, of other episodes, that the reported losses are measured on."""

    sentences: int = 4
    """Instructions an image; the image is looked at once for all of them."""

    minutes: float | None = None
    """How long to train [min], at the pace of this machine when the run begins (default: 6); frames
    and teacher come before it."""

    steps: int | None = None
    """Instead, how many optimiser steps."""

    pictures: int = 16
    """Images of a step."""

    learning_rate: float | None = None
    """Of the optimiser, at its highest, for language and vision (default: 5e-4, and 2.5e-4 with
    vision)."""

    head_learning_rate: float | None = None
    """The same for the head (default: 3e-4)."""

    noises: int = 2
    """With the head: trajectories of the dense policy's sampler, from so many noises, for each
    instruction of an image."""

    parts: str = "language"
    """What is trained: language, vision and head, with commas between them. The head is trained
    where the plan's guidance is distilled, and must be then."""

    dtype: Literal["float16", "float32"] = "float16"
    """What the weights are stored in."""

    threads: int = 0
    """Processor threads; 0: all cores. Another number gives other last digits."""

    preset: str | None = None
    """Sizes of an official checkpoint: cogact-small, cogact-base or cogact-large."""

    checkpoint: str | None = None
    """Name of the .pt file in `checkpoints/` of an official checkpoint; needed where there are
    several.
    """

    seed: int = 0
    """Of the drawn frames and of the order in which they come."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        counts = {
            "frames": self.frames,
            "held-out": self.held_out,
            "sentences": self.sentences,
            "pictures": self.pictures,
            "noises": self.noises,
            **({} if self.steps is None else {"steps": self.steps}),
        }
        if wrong := [f"--{name}" for name, value in counts.items() if value < 1]:
            raise ConfigError(f"expected at least 1 for {', '.join(wrong)}")
        if self.threads < 0 or self.seed < 0:
            raise ConfigError("expected at least 0 for --threads and --seed")
        if not 0 <= self.own <= 1:
            raise ConfigError(f"expected a share from 0 to 1 for --own, got {self.own}")
        if self.minutes is not None and self.steps is not None:
            raise ConfigError("expected --minutes or --steps, got both")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise ConfigError(f"expected a number above 0 for --minutes, got {self.minutes}")
        rates = {"": self.learning_rate, "head-": self.head_learning_rate}
        for name, rate in rates.items():
            if rate is not None and not 0 < rate < 1:
                raise ConfigError(f"expected 0 < --{name}learning-rate < 1, got {rate:g}")
        if (self.env is None) == (self.calibration is None):
            got = "neither" if self.env is None else "both"
            raise ConfigError(f"expected frames from --env or from --calibration, got {got}")
        if self.env is None and (given := self.env_options().given()):
            raise ConfigError(f"expected --env for {', '.join(given)}")
        unknown = sorted(set(self.part_names) - set(PARTS))
        if unknown or not self.part_names:
            raise ConfigError(f"expected --parts out of {list(PARTS)}, got {self.parts!r}")
        if self.head_learning_rate is not None and "head" not in self.part_names:
            raise ConfigError(
                f"expected head among --parts for --head-learning-rate, got {self.parts!r}"
            )
        if self.learning_rate is not None and self.part_names == ("head",):
            raise ConfigError("expected --head-learning-rate where the head alone is trained")

    @property
    def part_names(self) -> tuple[str, ...]:
        """`parts`, in order and each once."""
        return tuple(sorted({name.strip() for name in self.parts.split(",") if name.strip()}))

    @property
    def rate(self) -> float:
        """The learning rate of all but the head."""
        rates = [RATES[name] for name in self.part_names if name in RATES]
        return self.learning_rate or min(rates, default=HEAD_RATE)

    @property
    def head_rate(self) -> float:
        """The head's."""
        return self.head_learning_rate or HEAD_RATE

    @property
    def within(self) -> float | None:
        """Minutes that decide how many steps there are; None: their number is given."""
        return (self.minutes or MINUTES) if self.steps is None else None

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out),)
