"""One recovery from beginning to end: teacher, steps, losses.

Knows the order of things; what each of them is stands in `policies.recovery`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from trimvla.launch.recovery.session import Losses, Progressed, Session
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.recovery.distil import Distiller, Recipe, Taught, teach
from trimvla.policies.recovery.frames import EXPERT, HELD_OUT, OWN, Frames

SAVE_SECONDS = 30.0  # the most of the steps' work that a kill costs
PACE_STEPS = 2  # backward passes whose time decides how many steps fit into the minutes
Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Recovered:
    """What came out."""

    weights: dict[str, Tensor]
    """By the trimmed policy's names, as they will be stored."""
    progressed: Progressed
    """How it went."""
    after: Losses
    """With the stored weights."""
    resumed_at: int
    """The step that this process began with."""


def recover(
    dense: CogAct,
    student: CogAct,
    frames: Frames,
    session: Session,
    recipe: Recipe,
    *,
    minutes: float | None,
    dtype: torch.dtype,
    report: Report,
) -> Recovered:
    """Teach, train, measure.

    Args:
        dense: the teacher.
        student: the dense policy under the plan; it stays as it is.
        frames: what both look at.
        session: where the run's files lie.
        recipe: how; its steps are replaced where the minutes, or the run that goes on, decide.
        minutes: None: the recipe's steps.
        dtype: what the weights will be stored in.
        report: for a bar of progress.
    """
    taught = _taught(dense, student, frames, session, recipe=recipe, report=report)
    found = session.state()
    if found is not None:
        recipe = replace(recipe, steps=found[1].steps)
    distiller = Distiller(student, frames, taught, recipe)
    rows = frames.rows(EXPERT, OWN)
    held = frames.rows(HELD_OUT)
    if found is None:
        if minutes is not None:
            distiller.recipe = replace(recipe, steps=steps_within(distiller, rows, minutes))
        before = losses(distiller, held)
        start = Progressed(step=0, steps=distiller.recipe.steps, seconds=0.0, before=before)
        session.save(distiller.state(), start)
        found = ({}, start)
    else:
        distiller.resume(*_state_of(found))
    resumed_at = distiller.step
    progressed = _train(distiller, rows, session, found[1], report)
    stored = {name: each.detach().to(dtype).float() for name, each in distiller.weights.items()}
    distiller.resume({f"weight.{name}": each for name, each in stored.items()}, 0)
    return Recovered(stored, progressed, losses(distiller, held), resumed_at)


def _state_of(found: tuple[dict[str, Tensor], Progressed]) -> tuple[dict[str, Tensor], int]:
    return found[0], found[1].step


def _taught(
    dense: CogAct,
    student: CogAct,
    frames: Frames,
    session: Session,
    *,
    recipe: Recipe,
    report: Report,
) -> Taught:
    """The teacher's part of every image, part by part."""
    count = len(frames.images)
    done = 0
    found = []
    report("the dense policy looks", 0, count)
    for part in session.taught(count, lambda rows: teach(dense, student, frames, rows, recipe)):
        found.append(part)
        done += len(part.feature)
        report("the dense policy looks", done, count)
    return Taught(
        **{name: torch.cat([vars(part)[name] for part in found]) for name in vars(found[0])}
    )


def steps_within(distiller: Distiller, rows: Tensor, minutes: float) -> int:
    """How many steps this machine does in so many minutes, by the pace of a few that change
    nothing.
    """
    batch = rows[: distiller.recipe.pictures]
    seconds = []
    for _ in range(PACE_STEPS):
        start = time.monotonic()
        distiller.loss(batch).backward()
        seconds.append(time.monotonic() - start)
    distiller.optimiser.zero_grad(set_to_none=True)
    return max(1, int(minutes * 60 / min(seconds)))


def _train(
    distiller: Distiller, rows: Tensor, session: Session, progressed: Progressed, report: Report
) -> Progressed:
    """Advance to the last step, saving on the way."""
    steps = distiller.recipe.steps
    saved = time.monotonic()
    report("distilling", distiller.step, steps)
    while distiller.step < steps:
        start = time.monotonic()
        loss = distiller.update(rows)
        seconds = progressed.seconds + time.monotonic() - start
        progressed = msgspec.structs.replace(progressed, step=distiller.step, seconds=seconds)
        report(f"distilling, loss {loss:.4f}", distiller.step, steps)
        if time.monotonic() - saved > SAVE_SECONDS or distiller.step == steps:
            session.save(distiller.state(), progressed)
            saved = time.monotonic()
    return progressed


def losses(distiller: Distiller, held: Tensor) -> Losses:
    """What is lost on these images with the weights as they are now."""
    mean, p90 = summary(distiller.distances(held))
    if not distiller.recipe.with_head:
        return Losses(mean=mean, p90=p90)
    head_mean, head_p90 = summary(distiller.head_distances(held))
    return Losses(mean=mean, p90=p90, head_mean=head_mean, head_p90=head_p90)


def summary(distances: Tensor) -> tuple[float, float]:
    """Mean, and what 9 of 10 stay below."""
    return float(distances.mean()), float(distances.quantile(0.9))
