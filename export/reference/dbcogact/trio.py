"""What trimmed policies give for the arrays of a DB-CogACT reference directory.

Formulas as in CogACT's directory (`reference.trimmed`); here text stands before the image too,
and what is folded into the stages is unfolded where whole sequences are stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.dbcogact.directory import DENSE, DbReference, last_index
from trimvla.export.reference.dbcogact.outside import clipped, images
from trimvla.export.reference.groups import Values
from trimvla.policies.dbcogact.trimmed import trim
from trimvla.policies.nn.cachers import every
from trimvla.policies.nn.diffusion import ddim_steps
from trimvla.policies.trimming.calibrate import measure
from trimvla.policies.trimming.importance import block_influence, most_important
from trimvla.policies.trimming.tokens import Seen, diversity, efficientvla_groups, min_max
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder, as_layer, run_scored
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.bundle.scale import unnormalise
from trimvla.runtime.errors import ConfigError

READING = "evla/attn1/text/hid"
"""Attention of the last layer that sees all tokens, by all text behind the image."""
ALPHA = 0.5


# --- layers ---


def calibration_inputs(ref: DbReference) -> Values:
    """The decoder's input of each calibration sample, from its image and ids."""
    for key, match in ref.matches(r"bi/(sample\d+)/inputs_embeds"):
        visual = ref.policy.vision(images(ref, f"bi/{match[1]}/image"))
        yield key, ref.whole(visual, f"bi/{match[1]}/input_ids")


def influence(ref: DbReference) -> Values:
    """Block influence over the stored samples, and what it is made of."""
    samples = [ref.tensor(key) for key, _ in ref.matches(r"bi/sample\d+/inputs_embeds")]
    if not samples:
        return
    decoder = ref.policy.language
    yield "bi/mean_cos_per_sample", torch.stack([measure(decoder, [x]).similarity for x in samples])
    scores = block_influence(measure(decoder, samples), 0)
    yield "bi/scores", np.array(scores)
    yield "bi/order_ascending", np.argsort(scores, kind="stable")


def dropped_layers(ref: DbReference) -> Values:
    """The cognition feature without the n least important layers, by the stored scores."""
    for _, match in ref.matches(r"layerdrop/n(\d+)/kept_layers"):
        prefix = f"layerdrop/n{match[1]}"
        scores = ref.array("bi/scores").tolist()
        layers = most_important(scores, len(scores) - int(match[1]))
        yield f"{prefix}/kept_layers", np.array(layers)
        if f"{prefix}/cognition_feature" in ref.keys:
            feature, _ = ref.cognition(Plan(layers=layers), ref.tensor("vision/projected"))
            yield f"{prefix}/cognition_feature", feature


# --- tokens ---


def token_plans(ref: DbReference) -> Iterator[tuple[str, TokenPlan]]:
    """Prefixes of the stored choices, with their plans."""
    for key, match in ref.matches(rf"{READING}/K(\d+)/key"):
        count = len(ref.array(key))
        yield key.removesuffix("/key"), TokenPlan(keep=int(match[1]), key=count, alpha=ALPHA)


def decoder_under(ref: DbReference, plan: TokenPlan) -> TrimmedDecoder:
    """The decoder that drops tokens."""
    language = trim(ref.policy, Plan(tokens=plan)).language
    assert isinstance(language, TrimmedDecoder)
    return language


def token_scores(ref: DbReference) -> Values:
    """Where tokens are dropped: hidden states and attention over all positions; scores."""
    plans = [plan for _, plan in token_plans(ref)]
    if not plans:
        raise ConfigError(f"reference.npz: expected arrays '{READING}/K<n>/key', got none")
    decoder = ref.policy.language
    embeds = ref.whole(ref.tensor("vision/projected"), "in/input_ids")
    context = decoder.context(embeds, past=0)
    x = as_layer(decoder.layers[0])(embeds, *context)
    x, probabilities = run_scored(as_layer(decoder.layers[1]), x, context, 0)
    yield "evla/hidden_after_layer2", x[0]
    yield "evla/attn1/probs", probabilities[0]
    seen = observed(ref, plans[0])
    assert seen.relevance is not None
    yield "evla/attn1/text/relevance", seen.relevance[0]
    yield "evla/attn1/text/score01", min_max(seen.relevance)[0]
    keys = efficientvla_groups(plans[0], seen).key
    yield f"{READING}/diversity", diversity(seen.features, keys)[0]


def observed(ref: DbReference, plan: TokenPlan) -> Seen:
    """What the selector of a plan looks at, as deployed: with the first text folded in."""
    _, ids = ref.halves("in/input_ids")
    visual = ref.tensor("vision/projected")
    return decoder_under(ref, plan).observe(visual, ids, last_index(ids))[1]


def token_ranks(ref: DbReference) -> Values:
    """Key, task and diverse tokens in rank order."""
    for prefix, plan in token_plans(ref):
        groups = efficientvla_groups(plan, observed(ref, plan))
        yield f"{prefix}/key", groups.key[0]
        yield f"{prefix}/task", groups.task[0]
        yield f"{prefix}/div", groups.diverse[0]


def kept_tokens(ref: DbReference) -> Values:
    """The kept tokens, the cognition feature on them, and the sample that it leads to."""
    for prefix, plan in token_plans(ref):
        if not ref.matches(rf"{re.escape(prefix)}/(kept|cognition_feature|.+_sample)"):
            continue
        feature, kept = ref.cognition(Plan(tokens=plan), ref.tensor("vision/projected"))
        if kept is not None:
            yield f"{prefix}/kept", kept[0]
        yield f"{prefix}/cognition_feature", feature
        yield f"{prefix}/ddim10_cfg1.5_final_sample", ref.sample(DENSE, feature)[0]


# --- cache ---


def cache(ref: DbReference) -> Values:
    """Trajectories step by step, by a pair of step graphs; the whole sampler at once."""
    z = ref.tensor("dit/z_cond")[:, 0]
    steps = ref.policy.cfg.diffusion.inference_steps
    for key, match in ref.matches(r"cache/interval(\d+)/x"):
        prefix = key.removesuffix("/x")
        plan = Plan(recompute=every(int(match[1]), steps))
        yield key, torch.cat(list(trajectory(ref, plan, z)))
        yield f"{prefix}/recomputed_steps", np.array(plan.recompute)
        if f"{prefix}/normalized" in ref.keys:
            yield f"{prefix}/normalized", clipped(ref.sample(plan, z)[0].numpy())


def trajectory(ref: DbReference, plan: Plan, z: Tensor) -> Iterator[Tensor]:
    """The noise, then float[1, H, A] after every step, with blocks at the plan's steps alone."""
    diffusion = ref.policy.cfg.diffusion
    x = ref.tensor("action/noise")
    yield x
    residual: Tensor | None = None
    table = ddim_steps(diffusion.train_steps, diffusion.inference_steps)
    for index, step in enumerate(table):
        inputs = {"cognition": z, "x": x, "t": torch.tensor([float(step.t)])}
        if residual is None or index in (plan.recompute or ()):
            got = ref.run("action_full", DENSE, **inputs)
            residual = got["residual"]
        else:
            got = ref.run("action_reuse", DENSE, **inputs, residual=residual)
        x, _ = step.apply(x, got["epsilon"])
        yield x


def cache_units(ref: DbReference) -> Values:
    """Each schedule's stored normalised actions in the robot's units."""
    for key, match in ref.matches(r"(cache/[^/]+)/unnormalized/[^/]+"):
        yield key, unnormalise(ref.array(f"{match[1]}/normalized"), ref.scale)
