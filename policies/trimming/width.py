"""MLP width: which channels of a decoder layer are worth keeping, without training.

A channel is one row of gate, one row of up and one column of down. Its score is LoRAP's (arXiv
2404.09695): the sum over the three of || |W| sqrt(E x^2) ||_2, x the input of that matrix over
calibration data. LoRAP also keeps the least important 1 % of the channels, which matter although
they score low. The projector is never narrowed.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from trimvla.policies.nn.llama import SwiGlu
from trimvla.policies.sizes.cost import kept_count

LEAST = 0.01  # share of the channels, the least important ones, that is kept


def channel_scores(mlp: SwiGlu, inputs: Tensor, hidden: Tensor) -> Tensor:
    """LoRAP's score of every channel.

    Args:
        mlp: gate, up and down.
        inputs: float[width], mean square of the MLP's input over calibration tokens.
        hidden: float[mlp_hidden], mean square of what goes into down.

    Returns:
        float[mlp_hidden].
    """
    rows = sum(
        (linear.weight.square() * inputs).sum(dim=1).sqrt()
        for linear in (mlp.gate_proj, mlp.up_proj)
    )
    return rows + (mlp.down_proj.weight.square().sum(dim=0) * hidden).sqrt()


def narrow_scores(into: nn.Linear, out: nn.Linear, inputs: Tensor, hidden: Tensor) -> Tensor:
    """The same of an MLP of two maps without a gate; arguments as there."""
    rows = (into.weight.square() * inputs).sum(dim=1).sqrt()
    return rows + (out.weight.square().sum(dim=0) * hidden).sqrt()


def kept_channels(scores: Tensor, keep: float, least: float = LEAST) -> tuple[int, ...]:
    """The best channels and the `least` share at the bottom: ascending indices, `kept_count` of
    them.
    """
    hidden = len(scores)
    count = kept_count(hidden, keep)
    bottom = min(math.floor(least * hidden), count - 1)
    order = scores.argsort(descending=True, stable=True).tolist()
    return tuple(sorted(order[: count - bottom] + order[hidden - bottom :]))
