"""The rows of pi0 and pi0.5 in the table of families.

Imports no torch: what needs it is imported when it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from trimvla.policies.families import Family, lazily
from trimvla.policies.pi0.config import PRESETS, Pi0Config, Variant
from trimvla.policies.pi0.cost import cost, memory
from trimvla.policies.pi0.kept import slice_of
from trimvla.policies.sizes.counts import Trimmable
from trimvla.policies.streaming import Streaming

HERE = "trimvla.policies.pi0"
TIMES = re.compile(r"expert\.(?:time_mlp_|(?:layers\.\d+\.\w*|)norm\.dense\.).*")
"""Weights that the time's table is made of (`expert.Expert.time_table`)."""
TOKENIZER_HINT = (
    "pi0 and pi0.5 use PaliGemma's, which is gated: take `tokenizer.json` of"
    " google/paligemma-3b-pt-224 from your own Hugging Face cache, where one run of LeRobot puts it"
)


def _recognises(family: Variant) -> Callable[[Path], bool]:
    def recognises(directory: Path) -> bool:
        """Whether config.json is of this type, or openpi's and the weights have this one's
        names.
        """
        from trimvla.policies.pi0.source import variant_of

        return variant_of(directory) == family

    return recognises


def trimmable(cfg: Pi0Config) -> Trimmable:
    """See `Family.trimmable`."""
    return Trimmable(
        layers=cfg.language.layers,
        mlp_hidden=cfg.language.mlp_hidden,
        image_tokens=cfg.patches,
        cameras=len(cfg.cameras),
        steps=cfg.flow.steps,
        encoder_blocks=cfg.vision.depth,
    )


def _row(family: Variant) -> Family:
    return Family(
        name=family,
        config_type=Pi0Config,
        presets=PRESETS[family],
        recognises=_recognises(family),
        looks_for=f"config.json with type '{family}', or openpi's beside its PyTorch weights",
        tokenizer_hint=TOKENIZER_HINT,
        open_checkpoint=lazily(f"{HERE}.source:open_checkpoint"),
        build=lazily(f"{HERE}.checkpoint:build"),
        layout=lazily(f"{HERE}.layout:layout"),
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
        streaming=Streaming(
            build_meta=lazily(f"{HERE}.layout:build_meta"),
            computes=TIMES,
            slice_of=slice_of,
            placeholder=lazily(f"{HERE}.describe:placeholder"),
        ),
        reference="trimvla.export.reference.pi0.groups:PI0",
    )


PI0 = _row("pi0")
PI05 = _row("pi05")
