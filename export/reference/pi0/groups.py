"""What is compared of a reference directory of pi0 or pi0.5, and how closely: one row each.

Tolerances are those that the directory's NOTES.md suggests for a float32 implementation. Knows no
sizes.
"""

from __future__ import annotations

from trimvla.export.reference.groups import Group, ReferenceFamily
from trimvla.export.reference.pi0 import inputs, inside, samples, trio
from trimvla.export.reference.pi0.directory import exported, open_reference

PIXELS = ("pixels/*", "pixels_openpi/*")
PREFIX = (
    "prefix/embeddings",
    "prefix/layer_inputs",
    "prefix/last_layer_output",
    "prefix/final_normed",
)
PREFIX_MASKS = ("prefix/*_mask", "prefix/position_ids")
FLOW_MASKS = ("flow/attention_mask", "flow/position_ids")
PROMPTS = ("*/input_ids", "*/language_mask")
CURRENT = ("current/x_final", "current/normalized")

GROUPS = (
    Group("pixels", PIXELS, 1e-6, inputs.pixels, required=True),
    Group("state", ("in/state_*",), 1e-6, inputs.state),
    Group("prompt", PROMPTS, 0.0, inputs.prompt),
    Group("vision", ("vision/*",), 5e-5, inside.vision, required=True),
    Group("prefix_masks", PREFIX_MASKS, 0.0, inside.prefix_masks),
    Group("prefix", PREFIX, 2e-4, inside.prefix_layers, required=True),
    Group("keys", ("prefix/keys", "prefix/values"), 2e-4, inside.keys, required=True, staged=True),
    Group("flow_masks", FLOW_MASKS, 0.0, inside.flow_masks),
    Group("flow_times", ("flow/t",), 1e-7, samples.times),
    Group("velocity", ("flow/v", "flow/step*"), 2e-4, inside.flow, required=True),
    Group("time", ("time/embedding", "time/v_at_noise"), 2e-4, inside.times),
    Group(
        "trajectory",
        ("flow/x", "flow/x_final"),
        1e-4,
        samples.trajectory,
        required=True,
        staged=True,
    ),
    Group(
        "normalized",
        ("action/normalized", "second/normalized"),
        1e-4,
        samples.normalized,
        staged=True,
    ),
    Group("old_pixels", ("action/normalized",), 1e-4, samples.old_pixels, staged=True),
    Group("unnormalized", ("*/unnormalized",), 1e-5, inputs.unnormalized),
    Group("end_to_end", CURRENT, 1e-4, samples.end_to_end, staged=True),
    Group("current_keys", ("current/keys_last",), 2e-4, samples.end_to_end, staged=True),
    Group("current", ("current/prefix_embeddings", "current/v"), 2e-4, samples.current),
    Group("openpi", ("openpi/x_final",), 1e-4, samples.openpi),
    Group("pairs", ("layers/both*/normalized",), 1e-4, trio.pairs, staged=True),
    Group("expert_layers", ("layers/expert*/x",), 1e-4, trio.expert_layers, staged=True),
    Group("kept_layers", ("layers/*/kept",), 0.0, trio.kept_layers),
    Group("relevance", ("tokens/attention1", "tokens/relevance_*"), 2e-4, trio.scores),
    Group("kept_tokens", ("tokens/K*/kept",), 0.0, trio.kept_tokens, staged=True),
    Group("kept_keys", ("tokens/K*/keys_last",), 2e-4, trio.kept_keys, staged=True),
    Group("tokens", ("tokens/K*/x",), 1e-4, trio.kept_trajectories, staged=True),
    Group("cache", ("cache/*/x",), 1e-4, trio.cache, staged=True),
    Group("cache_steps", ("cache/*/runs",), 0.0, trio.cache_steps),
    Group("influence", ("bi/*",), 1e-5, trio.influence),
)

PI0 = ReferenceFamily(GROUPS, open_reference, exported)
