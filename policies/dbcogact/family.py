"""DB-CogACT's row of the table of families.

Imports no torch: what needs it is imported when it is called.
"""

from __future__ import annotations

from trimvla.policies.dbcogact.config import PRESETS, DbCogActConfig
from trimvla.policies.dbcogact.cost import cost
from trimvla.policies.dbcogact.folder import MODEL_TYPE, recognises
from trimvla.policies.dbcogact.memory import memory
from trimvla.policies.families import Family, lazily
from trimvla.policies.sizes.counts import Trimmable

HERE = "trimvla.policies.dbcogact"


def trimmable(cfg: DbCogActConfig) -> Trimmable:
    """See `Family.trimmable`."""
    return Trimmable(
        layers=cfg.language.layers,
        mlp_hidden=cfg.language.mlp_hidden,
        image_tokens=cfg.vision.patches,
        cameras=len(cfg.cameras),
        steps=cfg.diffusion.inference_steps,
    )


FAMILY = Family(
    name="dbcogact",
    config_type=DbCogActConfig,
    presets=PRESETS,
    recognises=recognises,
    looks_for=f"config.json with model_type '{MODEL_TYPE}'",
    tokenizer_hint=(
        "DB-CogACT uses Qwen2's: `tokenizer.json` is part of the checkpoint, beside config.json"
    ),
    open_checkpoint=lazily(f"{HERE}.source:open_checkpoint"),
    build=lazily(f"{HERE}.source:build"),
    layout=lazily(f"{HERE}.source:layout"),
    trim=lazily(f"{HERE}.trimmed:trim"),
    check_plan=lazily(f"{HERE}.trimmed:check"),
    stages=lazily(f"{HERE}.stages:stages"),
    tensor_specs=lazily(f"{HERE}.stages:tensor_specs"),
    example_inputs=lazily(f"{HERE}.stages:example_inputs"),
    describe=lazily(f"{HERE}.source:describe"),
    cost=cost,
    memory=memory,
    trimmable=trimmable,
    reference="trimvla.export.reference.dbcogact.groups:DBCOGACT",
    reference_names=("db-cogact",),
)
