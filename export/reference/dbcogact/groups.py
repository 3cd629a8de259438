"""What is compared of a DB-CogACT reference directory, and how closely: one row each.

Tolerances are those that the directory's NOTES.md suggests for a float32 implementation. Knows no
sizes. What stands around CogACT's head is the same, and is compared by the same functions.
"""

from __future__ import annotations

from trimvla.export.reference import modules
from trimvla.export.reference.dbcogact import inside, outside, trio
from trimvla.export.reference.dbcogact.directory import exported, open_reference
from trimvla.export.reference.groups import Group, ReferenceFamily

PIXELS = ("in/pixel_*", "multi/pixel_*")
IDS = ("in/input_ids", "second/input_ids", "bi/*/input_ids")
PLACES = ("llm/position_ids", "llm/attention_mask", "llm/image_start", "llm/image_tokens")
SEQUENCE = ("llm/inputs_embeds", "llm/rope_cos", "llm/rope_sin")
LAYERS = ("llm/layer_outputs", "llm/final_normed")
COGNITION = ("llm/cognition_feature", "dit/z_cond")
SCHEDULE = ("diffusion/betas*", "action/*/timesteps", "action/*/alphas_cumprod*")
TRAJECTORIES = ("action/*/x", "action/*/pred_xstart")
END_TO_END = ("action/normalized/ddim10_cfg1.5",)
SECOND = ("second/cognition_feature", "second/sample")
SIMPLER = ("simpler/*/world_vector", "simpler/*/gripper")
EVLA_SCORES = ("evla/*/probs", "evla/*/relevance", "evla/*/score01", "evla/*/diversity")
EVLA_RANKS = ("evla/*/key", "evla/*/task", "evla/*/div")
EVLA = ("evla/*/cognition_feature", "evla/*_final_sample")

GROUPS = (
    Group("pixels", PIXELS, 1e-6, outside.pixels, required=True),
    Group("prompt", IDS, 0.0, outside.prompt, required=True),
    Group("vision", ("vision/*",), 5e-5, inside.vision, required=True),
    Group("places", PLACES, 0.0, inside.sequence),
    Group("sequence", SEQUENCE, 5e-5, inside.sequence, required=True),
    Group("layers", LAYERS, 2e-4, inside.layers, required=True),
    Group("cognition", COGNITION, 3e-5, inside.cognition, required=True, staged=True),
    Group("dit", ("dit/z_uncond", "dit/t*"), 3e-5, inside.dit, required=True),
    Group("schedule", SCHEDULE, 1e-12, modules.schedule),
    Group("ddim", TRAJECTORIES, 3e-5, modules.ddim, required=True),
    Group("normalized", ("action/normalized/*",), 3e-5, outside.normalized),
    Group("unnormalized", ("action/unnormalized/*",), 1e-5, outside.unnormalized),
    Group("end_to_end", END_TO_END, 3e-5, outside.end_to_end, staged=True),
    Group("second", SECOND, 3e-5, outside.second, staged=True),
    Group("second_unnormalized", ("second/unnormalized/*",), 1e-5, outside.second, staged=True),
    Group("several_inputs", ("multi/inputs_embeds",), 5e-5, outside.several_pictures, staged=True),
    Group("several", ("multi/cognition_feature",), 3e-5, outside.several_pictures, staged=True),
    Group(
        "several_unnormalized",
        ("multi/unnormalized/*",),
        1e-5,
        outside.several_pictures,
        staged=True,
    ),
    Group("simpler", SIMPLER, 1e-9, outside.simpler),
    Group("simpler_rotation", ("simpler/*/rot_axangle",), 1e-7, outside.simpler),
    Group("simpler_frame", ("simpler/resized*",), 0.0, outside.resized),
    Group("bi_inputs", ("bi/sample*/inputs_embeds",), 5e-5, trio.calibration_inputs),
    Group("bi", ("bi/scores", "bi/mean_cos_per_sample"), 1e-5, trio.influence),
    Group("bi_order", ("bi/order_ascending",), 0.0, trio.influence),
    Group("layerdrop", ("layerdrop/*/cognition_feature",), 3e-5, trio.dropped_layers, staged=True),
    Group("layerdrop_kept", ("layerdrop/*/kept_layers",), 0.0, trio.dropped_layers),
    Group("evla_scores", EVLA_SCORES, 2e-5, trio.token_scores),
    Group("evla_hidden", ("evla/hidden_after_layer2",), 2e-4, trio.token_scores),
    Group("evla_ranks", EVLA_RANKS, 0.0, trio.token_ranks),
    Group("evla_kept", ("evla/*/kept",), 0.0, trio.kept_tokens, staged=True),
    Group("evla", EVLA, 3e-5, trio.kept_tokens, staged=True),
    Group("cache", ("cache/*/x", "cache/*/normalized"), 3e-5, trio.cache, staged=True),
    Group("cache_steps", ("cache/*/recomputed_steps",), 0.0, trio.cache),
    Group("cache_unnormalized", ("cache/*/unnormalized/*",), 1e-5, trio.cache_units),
)

DBCOGACT = ReferenceFamily(GROUPS, open_reference, exported)
