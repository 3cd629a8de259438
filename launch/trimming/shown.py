"""A plan for people: what each layer is worth as bars, and what is kept of some frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from trimvla.launch.figures.kept_tokens import kept_over_image
from trimvla.launch.figures.plan_picture import KeptFrame, draw_plan
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.tokenizer import instruction_in
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration, kept_tokens
from trimvla.policies.trimming.trimmed import kept_layers, trim
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError

BAR = 40  # characters of the longest bar
PICTURES = 6  # frames in the image of a plan that drops tokens


def scores_of(plan: Plan) -> tuple[float, ...]:
    """What each language layer is worth; empty where it was not measured."""
    return plan.provenance.scores if plan.provenance else ()


def as_table(plan: Plan) -> Table:
    """One bar a layer: what it is worth, and whether it stays."""
    scores = scores_of(plan)
    kept = set(range(len(scores)) if plan.layers is None else plan.layers)
    table = Table("layer", "score", "", "kept", title="worth of each language layer")
    highest = max(max(scores, default=0.0), 1e-12)
    for index, score in enumerate(scores):
        bar = "█" * max(0, round(BAR * score / highest))
        table.add_row(str(index), f"{score:.4f}", bar, "yes" if index in kept else "-")
    return table


def draw(policy: CogAct, plan: Plan, data: Calibration, tokenizer: Path, path: Path) -> Path:
    """Scores of the layers and, where tokens are dropped, what is kept of some frames; the path of
    the PNG.
    """
    frames = []
    if plan.tokens is not None:
        grid = policy.cfg.vision[0].image_size // policy.cfg.vision[0].patch_size
        for image, kept, ids in kept_tokens(trim(policy, plan), data, PICTURES):
            instruction = instruction_of(policy.cfg, tokenizer, ids)
            frames.append(KeptFrame(image, kept_over_image(image, kept, grid), instruction))
    scores = scores_of(plan)
    return draw_plan(scores, kept_layers(plan, policy.cfg), frames, path)


def instruction_of(cfg: PolicyConfig, tokenizer: Path, ids: np.ndarray) -> str:
    """The instruction in a prompt's ids; empty where no tokenizer lies beside the policy."""
    if not tokenizer.is_file():
        return ""
    text = load_tokenizer(tokenizer, error=ConfigError).decode(ids.tolist())
    return instruction_in(text, cfg.prompt.template)
