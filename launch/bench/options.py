"""The options of `trimvla bench`: which bundles, which backends, how many turns.

Knows their limits; opens nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.launch.bench.report import SAMPLES_AS
from trimvla.launch.bench.turns import COMPILED, EAGER
from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.runtime.errors import ConfigError

OWN_SIZE = "policy"
BASELINES = {"none": (), "eager": (EAGER,), "all": (EAGER, COMPILED)}
Baselines = Literal["auto", "none", "eager", "all"]


@dataclass(frozen=True)
class BenchArgs(PlanCounts, Options):
    """Measure a bundle's latency layer by layer; with --against, beside the dense bundle and the
    dense torch policy.
    """

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    against: str | None = None
    """The dense bundle that it is compared with, turn by turn; a ratio above 1 is faster than
    it.
    """

    also: tuple[str, ...] = ()
    """More bundles in the same turns, each as BUNDLE@BACKEND (such as
    tabletop-trimmed@openvino:bf16), L0 to L2; with --against the dense bundle on each of these
    backends too.
    """

    peer: tuple[str, ...] = ()
    """What a user would run instead, in the same turns: commands, often in an environment of their
    own, such as "PYTHON launch/bench/peers/lerobot_smolvla.py CHECKPOINT"; the lines that they
    answer are in launch/bench/peers/peer.py. The bundle, or --against, must be dense in float32,
    and a peer's actions are compared with its before anything is timed.
    """

    instruction: str = "pick up the red cube"
    """The instruction that the policy is given."""

    picture: str = OWN_SIZE
    """Size of the camera's image: the policy's own, as the demo's camera and one with `side` give
    it; or 640x480.
    """

    rounds: int = 50
    """Turns that count."""

    warmup: int = 5
    """Turns before them that do not."""

    backend: str = "onnxruntime"
    """What executes the stages: onnxruntime, openvino, tensorrt, tensorrt-rtx, or module:attribute
    of your own (docs/guides/own-backend.md).
    """

    provider: str | None = None
    """What executes inside the backend, such as CUDAExecutionProvider of ONNX Runtime (default: the
    CPU).
    """

    threads: int = 1
    """Threads of an operator, in every backend; 0 takes all cores."""

    baselines: Baselines = "auto"
    """The same policies in eager torch, and in compiled torch too: `auto` is `all` with --against,
    if torch and the checkpoint are there, else `none`. Compiling takes minutes, but only once on a
    machine.
    """

    selector: str | None = None
    """The token selector of somebody's own that the bundle's plan names, module:attribute; it is
    imported only where it is named here (docs/guides/own-token-selector.md).
    """

    random_weights: bool = False
    """Instead of a bundle: the stages of `preset` at full size with random weights, one in memory
    at a time. It is exported to out/random/ first, and kept there; only the graphs are timed.
    """

    preset: str = "cogact-base"
    """With random weights: which policy, cogact-small, cogact-base, cogact-large, tabletop, pi0 or
    pi05."""

    dtype: str = "float16"
    """Likewise: float32, float16 or bfloat16."""

    samples: Path | None = None
    """Also write the time of every single turn here: .npz or .json."""

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to measure, or nowhere to write it."""
        if self.rounds < 1 or self.warmup < 0:
            raise ConfigError(
                f"expected --rounds >= 1 and --warmup >= 0, got {self.rounds} and {self.warmup}"
            )
        if self.picture != OWN_SIZE and not re.fullmatch(
            r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.picture
        ):
            raise ConfigError(
                f"expected a size such as 640x480, or {OWN_SIZE}, for --picture,"
                f" got {self.picture!r}"
            )
        if self.threads < 0:
            raise ConfigError(f"expected --threads >= 0, got {self.threads}")
        if self.samples is not None and self.samples.suffix not in SAMPLES_AS:
            raise ConfigError(
                f"expected {' or '.join(SAMPLES_AS)} at the end of --samples, got {self.samples}"
            )
        alone = (self.bundle, self.against, self.peer, self.baselines, self.samples) == (
            "tabletop",
            None,
            (),
            "auto",
            None,
        )
        if self.random_weights and not alone:
            raise ConfigError(
                "expected --random-weights without a bundle, --against, --peer, --baselines and"
                " --samples"
            )
        if self.counted and not self.random_weights:
            raise ConfigError(
                "expected --layers, --mlp-keep, --tokens and --cache-interval with --random-weights"
                " only"
            )

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        kept = Output(
            "--random-weights, which keeps its bundle there", Path("out/random"), folder=True
        )
        return Output("--samples", self.samples), *([kept] if self.random_weights else [])

    @property
    def torch_backends(self) -> tuple[str, ...]:
        """The baselines that are to be measured."""
        chosen = (
            ("none" if self.against is None else "all")
            if self.baselines == "auto"
            else self.baselines
        )
        return BASELINES[chosen]
