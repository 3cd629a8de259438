"""The options of `trimvla gpu-bench`: which policy, which plans, how long.

Knows their limits; needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.runtime.errors import ConfigError

# EfficientVLA (arXiv 2506.10100), table 1: language layers and visual tokens, with 3/4 of the MLP
# and interval 5.
PUBLISHED = ((22, 56), (28, 112), (28, 56), (22, 112))


@dataclass(frozen=True)
class GpuBenchArgs(Options):
    """Latency of a full-size policy on a GPU, with random weights: dense and trimmed, eager,
    compiled and captured.
    """

    preset: str = "cogact-base"
    """Which policy: cogact-small, cogact-base, cogact-large or tabletop."""

    out: Path = Path("benchmarks")
    """Folder of `gpu-<device>.json` and `.png`."""

    seconds: float = 420.0
    """Time for everything: past it, what is not yet prepared is left out and named in the notes."""

    rounds: int = 100
    """Turns that count, if there is time for so many."""

    warmup: int = 10
    """Turns before them that do not."""

    device: str = "cuda"
    """`cpu` is for trying the command; it has no graphs."""

    layers: tuple[int, ...] = ()
    """Language layers of the plans, beside `tokens`, where the preset is no CogACT."""

    tokens: tuple[int, ...] = ()
    """Visual tokens of the plans."""

    bundles: tuple[Path, ...] = ()
    """Exported bundles, dense first, that ONNX Runtime's GPU providers and TensorRT run beside
    torch.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be measured."""
        if self.rounds < 1 or self.warmup < 0 or self.seconds <= 0:
            given = f"{self.rounds}, {self.warmup} and {self.seconds:g}"
            raise ConfigError(
                f"expected --rounds >= 1, --warmup >= 0 and --seconds > 0, got {given}"
            )
        if len(self.layers) != len(self.tokens):
            raise ConfigError(
                f"expected as many --layers as --tokens, got {len(self.layers)} and"
                f" {len(self.tokens)}"
            )
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(f"expected 'cuda' or 'cpu' for --device, got {self.device!r}")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out, folder=True),)

    @property
    def plans(self) -> tuple[tuple[int, int], ...]:
        """Layers and tokens of each plan."""
        return tuple(zip(self.layers, self.tokens, strict=True)) if self.layers else PUBLISHED
