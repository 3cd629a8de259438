"""ACT's row in the table of families. Imports no torch: what needs it is imported when it is
called.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.policies.act.config import PRESETS, ActConfig
from trimvla.policies.act.cost import cost
from trimvla.policies.act.memory import memory
from trimvla.policies.families import Family, lazily
from trimvla.policies.lerobot_fields import has_type
from trimvla.policies.sizes.counts import Trimmable

HERE = "trimvla.policies.act"
TYPE = "act"


def recognises(directory: Path) -> bool:
    """Whether config.json is LeRobot's, of this type."""
    return has_type(directory, TYPE)


def trimmable(cfg: ActConfig) -> Trimmable:
    """See `Family.trimmable`: the layers are the encoder's, and there is one step."""
    return Trimmable(
        layers=cfg.encoder_layers,
        mlp_hidden=cfg.mlp_hidden,
        image_tokens=cfg.tokens,
        cameras=len(cfg.cameras),
        steps=1,
    )


FAMILY = Family(
    name="act",
    config_type=ActConfig,
    presets=PRESETS,
    recognises=recognises,
    looks_for="config.json with type 'act'",
    tokenizer_hint="",
    open_checkpoint=lazily(f"{HERE}.source:open_checkpoint"),
    build=lazily(f"{HERE}.checkpoint:build"),
    layout=lazily(f"{HERE}.checkpoint:layout"),
    trim=lazily(f"{HERE}.trimmed:trim"),
    check_plan=lazily(f"{HERE}.kept:check"),
    stages=lazily(f"{HERE}.stages:stages"),
    tensor_specs=lazily(f"{HERE}.stages:tensor_specs"),
    example_inputs=lazily(f"{HERE}.stages:example_inputs"),
    describe=lazily(f"{HERE}.describe:describe"),
    cost=cost,
    memory=memory,
    trimmable=trimmable,
    measure_pairs=lazily(f"{HERE}.measure:measure_layers"),
    planned=frozenset({"layers", "channels"}),
    reference="trimvla.export.reference.act.groups:ACT",
)
