"""A stage as a chain of small pieces that pass tensors by name: a sampler's steps, a network's
layers.

In torch it is a module like any other. An exporter traces pieces that are alike once and repeats
the graph with each one's own weights, so that ten steps through eighteen layers take as long as one
layer. Knows no network and no file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """One call of a module on named tensors; a name that is given anew takes the old one's
    place.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    """In the order of `forward`'s parameters: what earlier pieces gave, or `constants`."""
    outputs: tuple[str, ...]
    like: str
    """The same for pieces that differ in weights and constants alone: in no number of Python's."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)


class Chained(nn.Module):
    """Pieces one behind the other; `inputs` and `outputs` are names."""

    def __init__(
        self, inputs: Sequence[str], outputs: Sequence[str], pieces: Sequence[Piece]
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.pieces = tuple(pieces)
        self.parts = nn.ModuleList(dict.fromkeys(piece.module for piece in self.pieces))

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the pieces on tensors in the order of `inputs`."""
        values = dict(zip(self.inputs, tensors, strict=True))
        for _ in self.calls(values):
            pass
        made = tuple(values[name] for name in self.outputs)
        return made[0] if len(made) == 1 else made

    def calls(self, values: dict[str, Tensor]) -> Iterator[tuple[Piece, tuple[Tensor, ...]]]:
        """Run the pieces on `values`, which takes what they give; yield each with its arguments."""
        for piece in self.pieces:
            arguments = tuple(
                piece.constants[name] if name in piece.constants else values[name]
                for name in piece.inputs
            )
            result = piece.module(*arguments)
            given = result if isinstance(result, tuple) else (result,)
            values.update(zip(piece.outputs, given, strict=True))
            yield piece, arguments
