"""The action stage in pieces: what does not change from step to step, then embedding, layers and
Euler step by step.

The same computation as `model.SmolVla.act`, laid out so that an exporter traces a layer of each
kind and not a hundred and sixty (`policies.chained`). Knows no plan but a built policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.chained import Chained, Piece
from trimvla.policies.nn.flow import FlowStep
from trimvla.policies.nn.flow_pieces import Collect, Reuse
from trimvla.policies.smolvla.expert import Expert, ExpertLayer, as_layer, joined_mask
from trimvla.policies.smolvla.keys_values import Angles, KeysValues
from trimvla.policies.smolvla.model import SmolVla

KNOWN = ("known", "weight")
Group = tuple[int, int]
"""Expert layers that read keys of one length, and how many visual rows are among these."""


class Around(nn.Module):
    """Each layer's keys and values, the masks of both kinds of layers, angles behind the prefix."""

    def __init__(self, visual: Sequence[int], start: int, rows: int) -> None:
        """Of one chunk.

        Args:
            visual: visual rows among the keys of each group of layers.
            start: positions of visual rows, come or not.
            rows: of actions.
        """
        super().__init__()
        self.visual = tuple(visual)
        self.start = start
        self.rows = rows

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Keys and values group by group, each float[layers, kv heads, n, d]; int64[1], the last
        id's index; tables of cosines and sines.

        Returns:
            Keys and values layer by layer; for each group bool[1, 1, n] and bool[1, H, n + H];
            cosines and sines float[1, 1, H, d].
        """
        *memory, last, cos, sin = tensors
        length = last + 1
        layers = [
            part[index][None]
            for group in range(len(self.visual))
            for index in range(memory[2 * group].shape[0])
            for part in memory[2 * group : 2 * group + 2]
        ]
        masks: list[Tensor] = []
        for group, visual in enumerate(self.visual):
            index = torch.arange(memory[2 * group].shape[2], device=last.device)
            valid = index < visual + 1 + length[:, None]
            masks += [valid[:, None], joined_mask(valid, self.rows)]
        positions = self.start + 1 + length[:, None] + torch.arange(self.rows, device=last.device)
        angles = Angles(cos, sin).of_each(positions)
        return (*layers, *masks, angles.cos, angles.sin)


class Embedding(nn.Module):
    """Actions and time to the expert's rows."""

    def __init__(self, expert: Expert) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """float[1, H, A], float[width] -> float[1, H, width]."""
        return self.expert.embed(x, time)


class Layer(nn.Module):
    """One layer of either kind."""

    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(  # noqa: PLR0917
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """See `ExpertLayer.forward`."""
        return self.layer(x, KeysValues(keys, values), Angles(cos, sin), mask)


class Sum(nn.Module):
    """What the layers added."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Behind and before the layers -> the difference, all float[1, H, width]."""
        return x - tokens


class Euler(nn.Module):
    """The velocity, and one step along it; `guided` towards known rows."""

    def __init__(self, expert: Expert, dt: float, guided: bool) -> None:
        super().__init__()
        self.expert = expert
        self.dt = dt
        self.guided = guided

    def forward(self, x: Tensor, hidden: Tensor, *more: Tensor) -> Tensor:
        """x float[1, H, A], rows float[1, H, width] -> x; `more`: known rows, their weight
        float[1, H, 1], and two numbers of `FlowStep`, float[1] each.
        """
        velocity = self.expert.decode(hidden)
        following = x + self.dt * velocity
        if not self.guided:
            return following
        known, weight, to_actions, pull = more
        return following + pull * weight * (known - (x + to_actions * velocity))


def build(
    policy: SmolVla,
    groups: Sequence[Group],
    inputs: Sequence[str],
    output: str,
    *,
    every_step: bool = False,
) -> Chained:
    """The action stage.

    Args:
        policy: dense or trimmed.
        groups: in the order of the layers; one without layers has no keys.
        inputs: names of the stage's tensors; with known rows among them it is guided.
        output: name of the last x, or of x at every step, the noise first.
        every_step: give the latter.
    """
    pieces = list(_pieces(policy, [group for group in groups if group[0]], inputs))
    if every_step:
        names = ("noise", *(f"x{k}" for k in range(len(policy.steps))))
        pieces.append(Piece(Collect(), names, (output,), "collect"))
    else:
        last = pieces.pop()
        pieces.append(Piece(last.module, last.inputs, (output,), last.like, last.constants))
    return Chained(inputs, (output,), pieces)


def _pieces(policy: SmolVla, groups: Sequence[Group], inputs: Sequence[str]) -> Iterator[Piece]:
    memory = [name for name in inputs if name.startswith(("keys", "values"))]
    module = Around([n for _, n in groups], policy.prefix.visual, policy.cfg.horizon)
    layers = [f"{kind}{i}" for i in range(len(policy.expert.layers)) for kind in ("k", "v")]
    masks = [f"{kind}{g}" for g in range(len(groups)) for kind in ("cross", "joined")]
    tables = {"cos_table": policy.angles.cos, "sin_table": policy.angles.sin}
    given = (*layers, *masks, "cos", "sin")
    yield Piece(module, (*memory, "last", *tables), given, "around", tables)
    x = "noise"
    for k, step in enumerate(policy.steps):
        yield from _step(policy, groups, k, step, x, guided=KNOWN[0] in inputs)
        x = f"x{k}"


def _step(
    policy: SmolVla, groups: Sequence[Group], k: int, step: FlowStep, x: str, *, guided: bool
) -> Iterator[Piece]:
    """One Euler step, from `x` to x<k>."""
    ends = policy.expert.without_layers()
    time = {"time": policy.times[k]}
    yield Piece(Embedding(ends), (x, *time), ("tokens",), "embedding", time)
    recompute = policy.plan.recompute
    if recompute is None or k in recompute:
        yield from _layers(policy, groups)
        if recompute is not None:
            yield Piece(Sum(), ("hidden", "tokens"), ("added",), "sum")
    else:
        yield Piece(Reuse(), ("tokens", "added"), ("hidden",), "reuse")
    numbers = {"to_actions": step.to_actions, "pull": step.pull} if guided else {}
    constants = {name: torch.tensor([number]) for name, number in numbers.items()}
    names = (x, "hidden", *(KNOWN if guided else ()), *constants)
    yield Piece(Euler(ends, step.dt, guided), names, (f"x{k}",), "euler", constants)


def _layers(policy: SmolVla, groups: Sequence[Group]) -> Iterator[Piece]:
    """The layers of a step that runs them: from `tokens` to `hidden`."""
    places = [group for group, (count, _) in enumerate(groups) for _ in range(count)]
    first = policy.angles.at(torch.arange(policy.cfg.horizon))
    x = "tokens"
    for index, module in enumerate(policy.expert.layers):
        layer = as_layer(module)
        kind = "joined" if layer.joined else "cross"
        constants = {} if layer.joined else {"first_cos": first.cos, "first_sin": first.sin}
        angles = ("cos", "sin") if layer.joined else tuple(constants)
        hidden = layer.get_parameter("mlp.gate_proj.weight").shape[0]
        yield Piece(
            Layer(layer),
            (x, f"k{index}", f"v{index}", f"{kind}{places[index]}", *angles),
            ("hidden",),
            f"{kind} layer, group {places[index]}, mlp {hidden}",
            constants,
        )
        x = "hidden"
