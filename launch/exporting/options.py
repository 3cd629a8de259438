"""The options of `trimvla export`, whichever way a policy goes. Knows no policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.exporting.plan_counts import PlanCounts
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.runtime.bundle.manifest import ActionKind
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportOptions(PlanCounts, Options):
    """All but the source; the counts are for random weights, instead of a plan."""

    out: Path
    """Where the bundle goes; its last part becomes the bundle's name."""

    preset: str | None = None
    """Sizes of an official checkpoint: cogact-small, cogact-base or cogact-large; or of random
    weights: one of these, pi0 or pi05.
    """

    random_weights: bool = False
    """Export a policy of this preset that was never trained: what latency and memory are measured
    with.
    """

    seed: int = 0
    """Of the random weights."""

    dtype: str = "float32"
    """What the graphs compute in: float32, float16, bfloat16, int8 or int8-dynamic
    (docs/results/precision.md); fp32, fp16 and bf16 are understood. An official CogACT checkpoint
    and random weights: the first three."""

    calibration: Path | None = None
    """Frames for int8, as `trimvla trim` takes them (default: demonstrations, made for the tabletop
    where none are).
    """

    frames: int = 64
    """How many of the demonstrations' frames."""

    checkpoint: str | None = None
    """Name of the .pt file in `checkpoints/` of an official checkpoint; needed where there are
    several.
    """

    tokenizer: Path | None = None
    """`tokenizer.json`, where it does not lie in the source."""

    statistics_key: str | None = None
    """Which dataset's statistics un-normalise the actions; needed where there are several."""

    plan: Path | None = None
    """What to keep: a plan made by `trimvla trim` (default: everything). A token selector of your
    own that it names is imported: look into a plan that somebody gave you."""

    patch: Path | None = None
    """Weights recovered for this plan by `trimvla recover`; a copy goes beside the bundle, as
    `OUT.patch.safetensors`, for `trimvla verify`."""

    control_hz: float | None = None
    """Rows of an action chunk per second (default: as the family's robots have it; 5 for the
    tabletop
    and WidowX, 3 for the Google robot).
    """

    kinds: tuple[ActionKind, ...] = ()
    """What an action dimension means to the robot: delta, absolute, velocity or gripper; once for
    each dimension, in their order (default: as the family has it).
    """

    names: tuple[str, ...] = ()
    """What each action dimension is called, as the robot's driver calls it (`elbow_flex.pos`): once
    for each dimension, in their order. Compared with the robot before it is armed.
    """

    units: tuple[str, ...] = ()
    """The unit of each action dimension, such as rad, deg or m; likewise."""

    guided: bool = False
    """Also export the action stage with rows that are known, for real-time chunking; it shares the
    other's weights.
    """

    overwrite: bool = False
    """Replace a bundle that is there."""

    no_resume: bool = False
    """Begin anew where a killed export of the same has left `OUT.partial` (official checkpoints and
    random weights).
    """

    @property
    def action(
        self,
    ) -> tuple[float | None, tuple[ActionKind, ...], tuple[str, ...], tuple[str, ...]]:
        """What is given of the action, as `export.inputs.with_action` takes it."""
        return self.control_hz, self.kinds, self.names, self.units

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out, folder=True),)


@dataclass(frozen=True)
class ExportArgs(ExportOptions):
    """Export a policy to a bundle: ONNX stages, manifest, tokenizer, statistics, and the proof of
    parity.
    """

    source: Positional[Path | None] = None
    """A run folder of `trimvla train`, a bundle with its checkpoint beside it (by path, or a
    shipped one by name), or a directory in the official checkpoint layout (then --preset is
    needed). None with --random-weights.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError where options do not go together."""
        if self.counted and (not self.random_weights or self.plan is not None):
            raise ConfigError(
                "expected --layers, --mlp-keep, --tokens and --cache-interval only with"
                " --random-weights and without --plan: what a trained policy can do without is for"
                " `trimvla trim` to find out"
            )
        if (self.source is None) != self.random_weights:
            got = "neither" if self.source is None else "both"
            raise ConfigError(f"expected a source, or --random-weights with --preset, got {got}")
        if self.patch is not None and self.random_weights:
            raise ConfigError("expected no --patch with --random-weights: it is for trained ones")
        if self.patch is not None and self.plan is None:
            raise ConfigError("expected the --plan that the --patch was recovered for, got none")
