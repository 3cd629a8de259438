"""Does our SmolVLA compute what LeRobot's computed? What is compared, and how closely.

Tolerances are for float32; the fixture's notes give their source. Arrays below `in/` and
`time/t` are what the others are computed from.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.export.reference.groups import Group, ReferenceFamily
from trimvla.export.reference.smolvla import dense, trio
from trimvla.export.reference.smolvla.directory import SmolVlaReference, open_reference
from trimvla.export.reference.staged import ExportedRuns

VISION = ("embeddings", "layers", "features", "connector")
PLACES = ("pad_mask", "attention_mask", "block_mask", "position_ids")
PREFIX = ("layer_inputs", "last_layer_output", "final_normed", "keys", "values")
ACTIONS = ("action/normalized", "second/normalized")
PROMPTS = ("in/input_ids", "in/language_mask", "second/input_ids", "second/language_mask")

GROUPS = (
    Group("pixels", ("pixels/*",), 1e-6, dense.pixels, required=True),
    Group("prompt", PROMPTS, 0.0, dense.prompts, required=True),
    Group("state", ("in/state_*",), 1e-6, dense.state, required=True),
    Group(
        "vision", tuple(f"vision/*/{name}" for name in VISION), 5e-5, dense.vision, required=True
    ),
    Group("embeddings", ("prefix/embeddings",), 2e-4, dense.embeddings, required=True),
    Group("places", tuple(f"prefix/{name}" for name in PLACES), 0.0, dense.places),
    Group("prefix", tuple(f"prefix/{name}" for name in PREFIX), 2e-4, dense.prefix, required=True),
    Group("cross", ("expert/cross*/keys", "expert/cross*/values"), 2e-4, dense.cross),
    Group("time", ("time/embedding", "time/v_at_noise"), 2e-4, dense.times),
    Group("schedule", ("flow/t",), 0.0, dense.schedule, required=True),
    Group("suffix_places", ("flow/attention_mask", "flow/position_ids"), 0.0, dense.surroundings),
    Group("velocity", ("flow/v", "flow/step*/*"), 2e-4, dense.velocities, required=True),
    Group("sample", ("flow/x", "flow/x_final"), 5e-5, dense.sample, required=True, staged=True),
    Group("actions", ACTIONS, 5e-5, dense.actions, required=True, staged=True),
    Group("unnormalized", ("action/unnormalized",), 1e-5, dense.unnormalized),
    Group("bi", ("bi/*",), 1e-5, trio.influence),
    Group("layers", ("layers/*/normalized", "layers/*/x"), 5e-5, trio.dropped_layers, staged=True),
    Group("attention", ("tokens/attention*", "tokens/relevance_*"), 2e-5, trio.attention),
    Group("kept", ("tokens/K*/kept",), 0.0, trio.kept_tokens, staged=True),
    Group("tokens", ("tokens/K*/x",), 5e-5, trio.token_samples, staged=True),
    Group("token_keys", ("tokens/K*/keys_last",), 2e-4, trio.token_keys),
    Group("cache", ("cache/*/x",), 5e-5, trio.cache, staged=True),
    Group("cache_steps", ("cache/*/runs",), 0.0, trio.cache),
    Group("shifted", ("shifted/*",), 5e-5, dense.shifted),
)


def exported(ref: SmolVlaReference, directory: Path, every_plan: bool) -> SmolVlaReference:
    """The same reference with its stages exported into the directory."""
    left_out = () if every_plan else trio.left_out_when_exported(list(ref.arrays))
    return ref.through(ExportedRuns(ref.policy, directory), frozenset(left_out))


SMOLVLA = ReferenceFamily(GROUPS, open_reference, exported)
