"""What a language layer is worth: criteria, each a pure function to one score a layer, and the
choice they lead to.

Block influence is EfficientVLA's (arXiv 2506.10100) and ShortGPT's (arXiv 2403.03853): one minus
the mean cosine between what enters a layer and what leaves it. The greedy ones take out, again and
again, the layer without which the policy's own output moves least: its cognition feature (as
FinerCut, arXiv 2405.18218, does with a language model's output) or its action chunk under the same
noise. Random and reverse order are the controls that they must beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from trimvla.policies.trimming.calibrate import Statistics
from trimvla.policies.trimming.outputs import Measured
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


def greedy_feature(statistics: Statistics, seed: int) -> list[float]:
    """The turn in which a layer is taken out, by the cognition feature."""
    return _turns(statistics, "feature")


def greedy_chunk(statistics: Statistics, seed: int) -> list[float]:
    """The turn in which a layer is taken out, by the action chunk."""
    return _turns(statistics, "chunk")


def _turns(statistics: Statistics, of: Measured) -> list[float]:
    """From 1 / layers for the layer that goes first to 1 for the one that is never taken out."""
    outputs = statistics.outputs
    if outputs is None:
        raise ConfigError("expected a policy that can be run for this criterion, got statistics")
    count = len(statistics.similarity)
    kept = list(range(count))
    scores = [1.0] * count
    for turn in range(1, count):
        distances = outputs.distances(kept, of)
        gone = kept.pop(distances.index(min(distances)))
        scores[gone] = turn / count
    return scores


CRITERIA: dict[str, Criterion] = {
    "block-influence": block_influence,
    "greedy-chunk": greedy_chunk,
    "greedy-feature": greedy_feature,
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
