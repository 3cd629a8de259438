"""How much each layer of a decoder turns the stream that a paired expert reads: block influence.

Of any decoder whose layers take the stream first (a tensor, or rows with `x`) and give it back
first. The deepest layer gives keys and values alone: there is no stream behind it to compare, and
as the one that the expert's last layer reads it counts as much as the best of the others. Knows no
family and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimvla.policies.trimming.calibrate import Statistics
from trimvla.runtime.errors import ConfigError


class Prefixed(Protocol):
    """A policy that reads a sample before it acts."""

    def read_prefix(self, sample: Mapping[str, Tensor]) -> object:
        """Sends one sample through what is measured once."""
        ...


class Paired(Prefixed, Protocol):
    """A policy with such a decoder."""

    def stream_layers(self) -> list[nn.Module]:
        """All layers but the deepest, each with the stream first in and out."""
        ...


class _Cosines:
    """Cosine between what enters and what leaves each layer: mean over rows, summed over
    samples.
    """

    def __init__(self, layers: int) -> None:
        self.total = torch.zeros(layers, dtype=torch.float64)

    def hook(self, index: int) -> Callable[..., None]:
        """What the layer `index` calls behind its forward."""

        def seen(_: nn.Module, given: tuple[object, ...], made: tuple[Tensor, object]) -> None:
            before = given[0] if isinstance(given[0], Tensor) else getattr(given[0], "x")  # noqa: B009
            cosine = F.cosine_similarity(before.double(), made[0].double(), dim=-1)
            self.total[index] += cosine.mean()

        return seen


def read_hooked(
    policy: Prefixed, samples: Iterable[Mapping[str, Tensor]], hooks: Sequence[RemovableHandle]
) -> int:
    """Send the samples through and remove the hooks; how many there were.

    Raises ConfigError where there is none.
    """
    count = 0
    try:
        for sample in samples:
            policy.read_prefix(sample)
            count = count + 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ConfigError("expected at least one calibration sample, got none")
    return count


@torch.no_grad()
def measure_pairs(policy: Paired, samples: Iterable[Mapping[str, Tensor]]) -> Statistics:
    """Similarity of the decoder's layers over samples; `inputs` and `channels` have no columns.

    Args:
        policy: dense.
        samples: input tensors by name, ids without padding.

    Raises:
        ConfigError: there is no sample, or the deepest layer is the only one.
    """
    layers = policy.stream_layers()
    if not layers:
        raise ConfigError("expected a decoder of at least 2 layers to choose from, got 1")
    cosines = _Cosines(len(layers))
    hooks = [layer.register_forward_hook(cosines.hook(index)) for index, layer in enumerate(layers)]
    count = read_hooked(policy, samples, hooks)
    similarity = cosines.total / count
    similarity = torch.cat([similarity, similarity.min()[None]])
    nothing = torch.zeros(len(similarity), 0, dtype=torch.float64)
    return Statistics(similarity, nothing, nothing, count)
