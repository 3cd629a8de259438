"""What is compared of a CogACT reference directory, and how closely.

`modules`, `runtime` and, for trimmed policies, `trimmed` define how each array comes about.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trimvla.export.reference import modules as module
from trimvla.export.reference import runtime, trimmed
from trimvla.export.reference.directory import Reference, open_reference
from trimvla.export.reference.groups import Group, ReferenceFamily
from trimvla.export.reference.planned_stages import ExportedStages
from trimvla.export.reference.trimmed import left_out_when_exported

LAYERS = ("llm/inputs_embeds", "llm/layer_outputs", "llm/final_normed")
SCHEDULE = ("diffusion/betas*", "action/*/timesteps", "action/*/alphas_cumprod*")
SIMPLER = (
    "simpler/*/world_vector",
    "simpler/*/gripper",
    "simpler/*/terminate_episode",
    "simpler/*/raw_*",
)
EVLA_SCORES = ("evla/*/probs", "evla/*/relevance", "evla/*/score01", "evla/*/diversity")

GROUPS = (
    Group("pixels", ("in/pixel_*",), 1e-6, runtime.pixels),
    Group("prompt", ("in/input_ids", "batch/input_ids"), 0.0, runtime.prompt),
    Group("vision", ("vision/*",), 5e-5, module.vision, required=True),
    Group("layers", LAYERS, 2e-4, module.layers, required=True),
    Group(
        "cognition", ("llm/cognition_feature", "dit/z_cond"), 3e-5, module.cognition, required=True
    ),
    Group("dit", ("dit/z_uncond", "dit/t*"), 3e-5, module.dit, required=True),
    Group("schedule", SCHEDULE, 1e-12, module.schedule),
    Group("ddim", ("action/*/x", "action/*/pred_xstart"), 3e-5, module.ddim, required=True),
    Group("normalized", ("action/normalized/*",), 3e-5, runtime.normalized),
    Group("unnormalized", ("action/unnormalized/*",), 1e-5, runtime.unnormalized),
    Group(
        "end_to_end", ("action/normalized/ddim10_cfg1.5",), 3e-5, runtime.end_to_end, staged=True
    ),
    Group("batch", ("batch/cognition_features", "batch/normalized"), 3e-5, runtime.batch),
    Group("batch_unnormalized", ("batch/unnormalized/*",), 1e-5, runtime.batch),
    Group("ensemble", ("ensemble/h*",), 1e-9, runtime.ensemble),
    Group("simpler", SIMPLER, 1e-9, runtime.simpler),
    Group("simpler_rotation", ("simpler/*/rot_axangle",), 1e-7, runtime.simpler),
    Group("deploy", ("deploy/resized*",), 0.0, runtime.deploy),
    Group("bi_inputs", ("bi/sample*/inputs_embeds",), 5e-5, trimmed.calibration_inputs),
    Group("bi", ("bi/scores", "bi/mean_cos_per_sample"), 1e-5, trimmed.influence),
    Group("bi_order", ("bi/order_ascending",), 0.0, trimmed.influence),
    Group(
        "layerdrop", ("layerdrop/*/cognition_feature",), 3e-5, trimmed.dropped_layers, staged=True
    ),
    Group("layerdrop_kept", ("layerdrop/*/kept_layers",), 0.0, trimmed.dropped_layers),
    Group("evla_scores", EVLA_SCORES, 2e-5, trimmed.token_scores),
    Group("evla_hidden", ("evla/hidden_after_layer2",), 2e-4, trimmed.token_scores),
    Group("evla_ranks", ("evla/*/key", "evla/*/task", "evla/*/div"), 0.0, trimmed.token_ranks),
    Group("evla_kept", ("evla/*/kept",), 0.0, trimmed.kept_tokens, staged=True),
    Group(
        "evla",
        ("evla/*/cognition_feature", "evla/*_final_sample"),
        3e-5,
        trimmed.token_features,
        staged=True,
    ),
    Group("cache", ("cache/*/x", "cache/*/normalized"), 3e-5, trimmed.cache, staged=True),
    Group("cache_steps", ("cache/*/recomputed_steps",), 0.0, trimmed.cache),
    Group("cache_unnormalized", ("cache/*/unnormalized/*",), 1e-5, trimmed.cache_units),
)


def exported(reference: Reference, directory: Path, every_plan: bool) -> Reference:
    """The same reference with its stages exported into the directory."""
    left_out = () if every_plan else left_out_when_exported(list(reference.arrays))
    stages = ExportedStages(reference.policy, directory)
    return replace(reference, stages=stages, left_out=frozenset(left_out))


FAMILY = ReferenceFamily(GROUPS, open_reference, exported)
