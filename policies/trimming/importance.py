"""What a language layer is worth: criteria, each a pure function to one score a layer, and the
choice they lead to.

Block influence is EfficientVLA's (arXiv 2506.10100) and ShortGPT's (arXiv 2403.03853): one minus
the mean cosine between what enters a layer and what leaves it. Random and reverse order are the
controls that it must beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from trimvla.policies.trimming.calibrate import Statistics
from trimvla.runtime.errors import ConfigError

Criterion = Callable[[Statistics, int], list[float]]
"""Statistics and a seed -> the worth of each layer."""


def block_influence(statistics: Statistics, seed: int) -> list[float]:
    """1 - mean cosine of input and output."""
    return (1.0 - statistics.similarity).tolist()


def random(statistics: Statistics, seed: int) -> list[float]:
    """Control: no reason at all."""
    generator = Random(seed)
    return [generator.random() for _ in statistics.similarity]


def reverse_order(statistics: Statistics, seed: int) -> list[float]:
    """Control: the deepest layers go first."""
    layers = len(statistics.similarity)
    return [(layers - index) / layers for index in range(layers)]


CRITERIA: dict[str, Criterion] = {
    "block-influence": block_influence,
    "random": random,
    "reverse-order": reverse_order,
}


def most_important(scores: Sequence[float], keep: int) -> tuple[int, ...]:
    """The `keep` layers of the highest scores, ascending; of equals the earlier stays.

    Raises:
        ConfigError: more layers to keep than exist, or none.
    """
    if not 1 <= keep <= len(scores):
        raise ConfigError(f"expected from 1 to {len(scores)} language layers to keep, got {keep}")
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    return tuple(sorted(ranked[:keep]))
