"""A model under an optimiser: learning rate, clipping, averaged weights, and one file of state.

What is the same for every policy that is trained here. Losses are a subclass's; so is what a batch
holds. What is random is drawn on the CPU, so that a run means the same on every device.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trimvla.policies.training.state import Origin, check_same_run, read_state

BETAS = (0.9, 0.98)
SAVE_SECONDS = 300.0
"""The most that a stop costs, where steps are slow."""
LAST_RATE = 0.02
"""Share of the learning rate at the last step."""


class AnyRecipe(Protocol):
    """The fields that every recipe has; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    steps: int
    pictures: int
    sentences: int
    learning_rate: float
    weight_decay: float
    warmup: int
    ema: float
    seed: int


class Data(Protocol):
    """Where batches come from."""

    def draw(self, rng: np.random.Generator, pictures: int, sentences: int) -> Any:  # noqa: ANN401
        """A random batch."""
        ...


class Trained(Protocol):
    """What a trainer reports about a run."""

    cfg: Any
    recipe: Any
    step: int
    seconds: float
    origin: Origin | None


class AuxHead(nn.Module):
    """A policy's features -> positions; trained beside it, not deployed."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        hidden = 2 * width
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, outputs))

    def forward(self, z: Tensor) -> Tensor:
        """float[..., D] -> float[..., X]."""
        return self.net(z)


class Optimised:
    """A model, its average and its optimiser."""

    def __init__(self, model: nn.Module, recipe: Any, device: str) -> None:  # noqa: ANN401
        """Of a model with starting weights; `recipe` is an `AnyRecipe`."""
        self.recipe = recipe
        self.step = 0
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.average = self.snapshot()
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, recipe.weight_decay), lr=recipe.learning_rate, betas=BETAS
        )
        self.history: list[dict[str, float]] = []
        self.origin: Origin | None = None
        self.seconds = 0.0

    def losses(self, batch: Any, rng: np.random.Generator) -> dict[str, Tensor]:  # noqa: ANN401
        """All losses of a batch, and what else is worth a curve."""
        raise NotImplementedError

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """What is minimised."""
        raise NotImplementedError

    def update(self, batch: Any, rng: np.random.Generator) -> dict[str, float]:  # noqa: ANN401
        """One optimiser step; returns the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._schedule()
        losses = self.losses(batch, rng)
        loss = self.total(losses)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._average()
        values = {name: float(value.detach()) for name, value in losses.items()}
        return values | {"norm": float(norm)}

    def _schedule(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.recipe.steps)))
        return warm * (LAST_RATE + (1 - LAST_RATE) * cosine)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        names, values = zip(*self.model.state_dict().items(), strict=True)
        averages = [self.average[name] for name in names]
        torch._foreach_lerp_(averages, list(values), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights as they are now."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def averaged(self, part: str) -> dict[str, Tensor]:
        """A copy of the averaged weights of one part of the model, by its own names."""
        prefix = f"{part}."
        return {
            name[len(prefix) :]: value.clone()
            for name, value in self.average.items()
            if name.startswith(prefix)
        }

    def save(self, path: Path) -> None:
        """Replace the run's state in one move."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "recipe": asdict(self.recipe),
            "origin": self.origin,
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a saved state.

        Raises:
            ConfigError: it is of another recipe, or began with other weights.
        """
        state = read_state(path, self.device)
        check_same_run(state, path, asdict(self.recipe), self.origin)
        self.origin = state.get("origin", self.origin)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step = state["step"]
        self.history = state["history"]
        self.seconds = state["seconds"]


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def train(
    trainer: Optimised,
    data: Data,
    run: Path,
    *,
    report: Callable[[int, dict[str, float]], None],
    save_every: int = 200,
) -> None:
    """Advance to the recipe's last step from where `run/state.pt` stopped, saving as it goes.

    Saved is every `save_every` steps, and whenever `SAVE_SECONDS` have passed.
    """
    state = run / "state.pt"
    run.mkdir(parents=True, exist_ok=True)
    if state.exists():
        trainer.resume(state)
    recipe = trainer.recipe
    saved = time.monotonic()
    while trainer.step < recipe.steps:
        rng = np.random.default_rng((recipe.seed, trainer.step))
        torch.manual_seed(recipe.seed * 1_000_003 + trainer.step)
        start = time.monotonic()
        losses = trainer.update(data.draw(rng, recipe.pictures, recipe.sentences), rng)
        trainer.seconds += time.monotonic() - start
        trainer.history.append({"step": trainer.step, "seconds": trainer.seconds, **losses})
        report(trainer.step, losses)
        late = time.monotonic() - saved > SAVE_SECONDS
        if late or trainer.step % save_every == 0 or trainer.step == recipe.steps:
            trainer.save(state)
            (run / "history.json").write_text(json.dumps(trainer.history))
            saved = time.monotonic()
