"""What each encoder layer of an ACT policy does on calibration samples: how much it turns the
stream, and what each of its MLP's channels is worth.

A channel is one row of `fc1` and one column of `fc2`; its score is LoRAP's, as in
`trimming.width`. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.act.layers import EncoderLayer, FeedForward
from trimvla.policies.act.model import Act
from trimvla.policies.trimming.calibrate import Statistics
from trimvla.policies.trimming.pairs import read_hooked
from trimvla.policies.trimming.width import narrow_scores


class _Sums:
    """Of every layer: the cosine between what enters and leaves it, and the squares of what goes
    into `fc1` and into `fc2`; each a mean over a sample's rows, summed over samples.
    """

    def __init__(self, layers: int, width: int, hidden: int) -> None:
        self.cosines = torch.zeros(layers, dtype=torch.float64)
        self.inputs = torch.zeros(layers, width, dtype=torch.float64)
        self.channels = torch.zeros(layers, hidden, dtype=torch.float64)

    def turned(self, index: int) -> Callable[..., None]:
        """What the layer `index` calls behind its forward."""

        def seen(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            cosine = F.cosine_similarity(given[0].double(), made.double(), dim=-1)
            self.cosines[index] += cosine.mean()

        return seen

    def squares(self, sums: Tensor) -> Callable[..., None]:
        """What a linear map calls in front of its forward."""

        def seen(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            sums.add_(given[0].double().square().flatten(0, -2).mean(dim=0))

        return seen


@torch.no_grad()
def measure_layers(policy: Act, samples: Iterable[Mapping[str, Tensor]]) -> Statistics:
    """See `Family.measure_pairs`: of every encoder layer, the deepest too, which leaves a stream.

    Raises:
        ConfigError: there is no sample.
    """
    layers = [cast("EncoderLayer", layer) for layer in policy.encoder.layers]
    sums = _Sums(len(layers), policy.cfg.width, policy.cfg.mlp_hidden)
    hooks = []
    for index, layer in enumerate(layers):
        mlp: FeedForward = layer.mlp
        hooks.append(layer.register_forward_hook(sums.turned(index)))
        hooks.append(mlp.fc1.register_forward_pre_hook(sums.squares(sums.inputs[index])))
        hooks.append(mlp.fc2.register_forward_pre_hook(sums.squares(sums.channels[index])))
    count = read_hooked(policy, samples, hooks)
    inputs = sums.inputs / count
    channels = sums.channels / count
    worth = [
        narrow_scores(layer.mlp.fc1, layer.mlp.fc2, inputs[index], channels[index])
        for index, layer in enumerate(layers)
    ]
    return Statistics(sums.cosines / count, inputs, channels, count, worth=torch.stack(worth))
