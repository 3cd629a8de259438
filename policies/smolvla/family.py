"""SmolVLA's row in the table of families. Imports no torch: what needs it is imported when it is
called.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.policies.families import Family, lazily
from trimvla.policies.lerobot_fields import has_type
from trimvla.policies.sizes.counts import Trimmable
from trimvla.policies.smolvla.config import PRESETS, SmolVlaConfig
from trimvla.policies.smolvla.cost import cost
from trimvla.policies.smolvla.kept import tokens_per_image
from trimvla.policies.smolvla.memory import memory
from trimvla.runtime.bundle.plan import Plan

HERE = "trimvla.policies.smolvla"
TYPE = "smolvla"
TOKENIZER_HINT = (
    "SmolVLA uses that of HuggingFaceTB/SmolVLM2-500M-Video-Instruct: take `tokenizer.json` from "
    "your own Hugging Face "
    "cache (hub/models--HuggingFaceTB--SmolVLM2-500M-Video-Instruct/snapshots/*/), where one run "
    "of LeRobot puts it"
)


def recognises(directory: Path) -> bool:
    """Whether config.json is LeRobot's, of this type."""
    return has_type(directory, TYPE)


def trimmable(cfg: SmolVlaConfig) -> Trimmable:
    """See `Family.trimmable`."""
    return Trimmable(
        layers=cfg.text.layers,
        mlp_hidden=cfg.text.mlp_hidden,
        image_tokens=cfg.tokens,
        cameras=len(cfg.cameras),
        steps=cfg.flow.steps,
        encoder_blocks=cfg.vision.depth,
    )


def image_tokens(cfg: SmolVlaConfig, plan: Plan) -> int:
    """See `Family.image_tokens`."""
    return tokens_per_image(plan, cfg)


FAMILY = Family(
    name="smolvla",
    config_type=SmolVlaConfig,
    presets=PRESETS,
    recognises=recognises,
    looks_for="config.json with type 'smolvla'",
    tokenizer_hint=TOKENIZER_HINT,
    open_checkpoint=lazily(f"{HERE}.lerobot.source:open_checkpoint"),
    build=lazily(f"{HERE}.checkpoint:build"),
    layout=lazily(f"{HERE}.checkpoint:layout"),
    trim=lazily(f"{HERE}.trimmed:trim"),
    check_plan=lazily(f"{HERE}.checks:check"),
    stages=lazily(f"{HERE}.stages:stages"),
    tensor_specs=lazily(f"{HERE}.stages:tensor_specs"),
    example_inputs=lazily(f"{HERE}.stages:example_inputs"),
    describe=lazily(f"{HERE}.describe:describe"),
    cost=cost,
    memory=memory,
    measure_pairs=lazily("trimvla.policies.trimming.pairs:measure_pairs"),
    trimmable=trimmable,
    image_tokens=image_tokens,
    reference="trimvla.export.reference.smolvla.groups:SMOLVLA",
)
