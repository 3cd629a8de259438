"""The action stage in pieces: what does not change from step to step, then embedding, layers and
Euler step by step.

The same computation as `model.Pi0.act`, laid out so that an exporter traces one layer and not a
hundred and eighty (`policies.chained`). Knows no plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimvla.policies.chained import Chained, Piece
from trimvla.policies.nn.flow import FlowStep
from trimvla.policies.nn.flow_pieces import Collect, Reuse
from trimvla.policies.nn.gemma import Angles, KeysValues, Modulation
from trimvla.policies.pi0.expert import Expert, ExpertLayer, followed_by_valid

MODULATION: tuple[str, ...] = ("scale", "shift", "gate")
SECOND = ("scale2", "shift2", "gate2")


class Surroundings(nn.Module):
    """Each layer's keys and values, masks of the groups of layers, and angles of the expert's
    rows.
    """

    def __init__(self, expert: Expert, groups: Sequence[int], start: int, rows: int) -> None:
        """Of one chunk.

        Args:
            expert: for the size of a head.
            groups: visual keys of each group of layers.
            start: positions of the dense policy's visual tokens.
            rows: of actions.
        """
        super().__init__()
        self.head_dim = expert.head_dim
        self.theta = expert.theta
        self.state = int(expert.state_proj is not None)
        self.groups = tuple(groups)
        self.start = start
        self.rows = rows

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Keys and values group by group, each float[layers, kv heads, n, d], and int64[1], the
        last id's index.

        Returns:
            Keys and values layer by layer; a mask bool[1, 1, keys] a group; cos and sin float[1, 1,
            rows, d]. With a state, then masks, cos and sin of the first step's rows, the state's in
            front.
        """
        length = tensors[-1] + 1
        layers = [
            part[index][None]
            for group in range(len(self.groups))
            for index in range(tensors[2 * group].shape[0])
            for part in tensors[2 * group : 2 * group + 2]
        ]
        valid = [
            torch.arange(tensors[2 * group].shape[2], device=length.device)
            < visual + length[:, None]
            for group, visual in enumerate(self.groups)
        ]
        count = self.rows + self.state
        positions = self.start + length[:, None] + torch.arange(count, device=length.device)
        angles = Angles.of(positions, self.head_dim, self.theta)
        masks = [followed_by_valid(mask, count)[:, None] for mask in valid]
        if not self.state:
            return (*layers, *masks, angles.cos, angles.sin)
        firsts = [Expert.mask(mask, count, True) for mask in valid]
        later = (angles.cos[:, :, 1:], angles.sin[:, :, 1:])
        return (*layers, *masks, *later, *firsts, angles.cos, angles.sin)


class Embedding(nn.Module):
    """Actions, and at the first step the state, to the expert's rows."""

    def __init__(self, expert: Expert, with_state: bool) -> None:
        super().__init__()
        self.expert = expert
        self.with_state = with_state

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """float[1, H, A], the time's float[width] where actions carry it, the state -> float[1,
        rows, width].
        """
        time = x if self.expert.modulated else more[0]
        tokens = self.expert.embed(x, time)
        if not self.with_state:
            return tokens
        return torch.cat([self.expert.state_token(more[-1]), tokens], dim=1)


class Layer(nn.Module):
    """One layer; `remembers`: the first row's keys and values join the memory; `parts`: its
    additions are given too.
    """

    def __init__(self, layer: ExpertLayer, *, remembers: bool, parts: bool) -> None:
        super().__init__()
        self.layer = layer
        self.remembers = remembers
        self.parts = parts

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, *around: Tensor
    ) -> tuple[Tensor, ...]:
        """See `ExpertLayer.forward`; `around`: mask, cos, sin, then scale, shift and gate of both
        norms if they are modulated.
        """
        memory = KeysValues(keys, values)
        mask, cos, sin, *given = around
        both = (Modulation(*given[:3]), Modulation(*given[3:])) if given else None
        output = self.layer(x, memory, Angles(cos, sin), mask, both)
        made = [output.x]
        if self.remembers:
            longer = memory.followed_by(output.own.first())
            made += [longer.keys, longer.values]
        if self.parts:
            made += [output.attended, output.fed]
        return tuple(made)


class Sum(nn.Module):
    """What the layers added to the actions' rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """float[1, n, width] behind and before the layers -> float[1, rows, width]."""
        return (x - tokens)[:, -self.rows :]


class Regate(nn.Module):
    """New rows and what every layer gave before its gates, under the gates of the new time."""

    def forward(self, tokens: Tensor, gates: Tensor, *increments: Tensor) -> Tensor:
        """float[1, H, width], float[2 * layers, width], one float[1, H, width] a gate -> float[1,
        H, width].
        """
        added = (torch.stack(increments) * gates[:, None, None]).sum(dim=0)
        return tokens + added


class Euler(nn.Module):
    """The velocity, and one step along it."""

    def __init__(self, expert: Expert, rows: int, dt: float, guided: bool) -> None:
        super().__init__()
        self.expert = expert
        self.rows = rows
        self.dt = dt
        self.guided = guided

    def forward(self, x: Tensor, hidden: Tensor, *more: Tensor) -> Tensor:
        """x float[1, H, A], rows float[1, n, width], the final norm's scale, shift and gate if it
        is modulated.

        Guided: known rows float[1, H, A], their weight float[1, H, 1], and two numbers of
        `FlowStep`, float[1] each.
        """
        modulation = Modulation(*more[:3]) if self.expert.modulated else None
        velocity = self.expert.decode(hidden[:, -self.rows :], modulation)
        following = x + self.dt * velocity
        if not self.guided:
            return following
        known, weight, to_actions, pull = more[-4:]
        return following + pull * weight * (known - (x + to_actions * velocity))


@dataclass(frozen=True)
class ActionParts:
    """What `build` makes pieces of."""

    expert: Expert
    steps: Sequence[FlowStep]
    table: Tensor
    """`Expert.time_table` of the steps."""
    recompute: tuple[int, ...] | None
    ungated: bool
    groups: Sequence[tuple[int, int]]
    """Layers and visual keys of each group, in the order of the layers."""
    start: int
    rows: int
    guided: bool = False


def build(
    parts: ActionParts, inputs: Sequence[str], output: str, *, every_step: bool = False
) -> Chained:
    """The action stage.

    Args:
        plan: of what.
        inputs: names of the stage's tensors.
        output: name of the last x, or of x at every step, the noise first.
        every_step: give the latter.
    """
    pieces = list(_pieces(parts, [name for name in inputs if name.startswith(("keys", "values"))]))
    if every_step:
        names = ("noise", *(f"x{k}" for k in range(len(parts.steps))))
        pieces.append(Piece(Collect(), names, (output,), "collect"))
        return Chained(inputs, (output,), pieces)
    last = pieces[-1]
    pieces[-1] = Piece(last.module, last.inputs, (output,), last.like, last.constants)
    return Chained(inputs, (output,), pieces)


def _pieces(parts: ActionParts, memory: Sequence[str]) -> Iterator[Piece]:
    expert = parts.expert
    groups = range(len(parts.groups))
    layers = range(len(expert.layers))
    surroundings = Surroundings(expert, [n for _, n in parts.groups], parts.start, parts.rows)
    flat = [f"{kind}{i}" for i in layers for kind in ("k", "v")]
    around = [*(f"mask{g}" for g in groups), "cos", "sin"]
    firsts = [f"first_{name}" for name in around] if expert.state_proj is not None else []
    outputs = (*flat, *around, *firsts)
    yield Piece(surroundings, (*memory, "last"), outputs, "surroundings")
    x = "noise"
    for k, step in enumerate(parts.steps):
        yield from _step(parts, k, step, x)
        x = f"x{k}"


def _step(parts: ActionParts, k: int, step: FlowStep, x: str) -> Iterator[Piece]:
    """One Euler step, from `x` to x<k>."""
    expert = parts.expert
    time = parts.table[k]
    ends = without_layers(expert)
    first = k == 0 and expert.state_proj is not None
    mixed = {} if expert.modulated else {"time": time}
    state = ("state",) if first else ()
    embedding = Embedding(ends, first)
    yield Piece(embedding, (x, *mixed, *state), ("tokens",), f"embedding{first}", mixed)
    full = parts.recompute is None or k in parts.recompute
    reuses = parts.recompute is not None and len(parts.recompute) < len(parts.steps)
    ungated = parts.ungated and expert.modulated
    if full:
        yield from _layers(parts, time, first, reuses and ungated)
        if reuses and not ungated:
            yield Piece(Sum(parts.rows), ("hidden", "tokens"), ("added",), f"sum{first}")
    elif ungated:
        increments = [f"{kind}{i}" for i in range(len(expert.layers)) for kind in ("a", "f")]
        gates = {"gates": time[:-1, 2]}
        yield Piece(Regate(), ("tokens", "gates", *increments), ("hidden",), "regate", gates)
    else:
        yield Piece(Reuse(), ("tokens", "added"), ("hidden",), "reuse")
    constants: dict[str, Tensor] = {}
    if expert.modulated:
        constants = dict(zip(MODULATION, time[-1], strict=True))
    names = (x, "hidden", *constants)
    if parts.guided:
        constants = {
            **constants,
            "to_actions": time.new_tensor([step.to_actions]),
            "pull": time.new_tensor([step.pull]),
        }
        names = (*names, "known", "weight", "to_actions", "pull")
    euler = Euler(ends, parts.rows, step.dt, parts.guided)
    yield Piece(euler, names, (f"x{k}",), f"euler{first and full}", constants)


def without_layers(expert: Expert) -> Expert:
    """All but the layers: pieces of it are alike whatever layers a plan keeps."""
    made = copy(expert)
    made._modules = {**expert._modules, "layers": nn.ModuleList()}
    return made


def _layers(parts: ActionParts, time: Tensor, first: bool, additions: bool) -> Iterator[Piece]:
    """The layers of a step that runs them: from `tokens` to `hidden`."""
    expert = parts.expert
    x = "tokens"
    kind = "first_" if first else ""
    places = [group for group, (count, _) in enumerate(parts.groups) for _ in range(count)]
    for index, module in enumerate(expert.layers):
        assert isinstance(module, ExpertLayer)
        constants: dict[str, Tensor] = {}
        if expert.modulated:
            both = time[2 * index : 2 * index + 2].flatten(0, 1)
            constants = dict(zip((*MODULATION, *SECOND), both, strict=True))
        around = (f"{kind}mask{places[index]}", f"{kind}cos", f"{kind}sin")
        memory = (f"k{index}", f"v{index}")
        given = (
            "hidden",
            *(memory if first else ()),
            *((f"a{index}", f"f{index}") if additions else ()),
        )
        hidden = module.mlp.gate_proj.out_features
        yield Piece(
            Layer(module, remembers=first, parts=additions),
            (x, *memory, *around, *constants),
            given,
            f"layer{first} group {places[index]} mlp {hidden}",
            constants,
        )
        x = "hidden"
