"""What trimmed policies give for the arrays of a reference directory: importance, dropped layers,
tokens, the cache.

The public code has none of these; the arrays follow the paper (EfficientVLA, arXiv 2506.10100) in
plain NumPy, with every choice that the paper leaves open in the array's name. Yields (key, value)
as `reference_modules` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.directory import Reference
from trimvla.export.reference.groups import Values
from trimvla.export.reference.runtime import in_units, square_image
from trimvla.policies.nn.cachers import every
from trimvla.policies.trimming.calibrate import measure
from trimvla.policies.trimming.importance import block_influence, most_important
from trimvla.policies.trimming.tokens import diversity, efficientvla_groups, min_max, relevance
from trimvla.policies.trimming.trimmed import trim
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.bundle.scale import binarise
from trimvla.runtime.errors import ConfigError

READING = re.compile(r"evla/(attn[12])(?:/(text|text_nolast2))?(?:/(hid|proj))?(?:/K(\d+))?/[^/]+")
SOURCES: dict[str, Literal["previous", "next"]] = {"attn1": "previous", "attn2": "next"}
ROWS: dict[str, Literal["text", "instruction"]] = {"text": "text", "text_nolast2": "instruction"}
EMBEDDINGS: dict[str, Literal["hidden", "projected"]] = {"hid": "hidden", "proj": "projected"}
PRIMARY = "attn1/text/hid"  # the reading that the product uses by default
ALPHA = 0.5


# --- layers ---------------------------------------------------------------------------------------


def calibration_inputs(ref: Reference) -> Values:
    """The decoder's input of each calibration sample, from its image and ids."""
    for key, match in ref.matches(r"bi/(sample\d+)/inputs_embeds"):
        visual = ref.policy.vision(square_image(ref, f"bi/{match[1]}/image"))
        yield key, ref.policy.language.embed(visual, ref.tensor(f"bi/{match[1]}/input_ids")[None])


def influence(ref: Reference) -> Values:
    """Block influence over the stored samples, and what it is made of."""
    samples = [ref.tensor(key) for key, _ in ref.matches(r"bi/sample\d+/inputs_embeds")]
    if not samples:
        return
    alone = [measure(ref.policy.language, [sample]).similarity for sample in samples]
    yield "bi/mean_cos_per_sample", torch.stack(alone)
    scores = influence_scores(ref, samples)
    yield "bi/scores", np.array(scores)
    yield "bi/order_ascending", np.argsort(scores, kind="stable")


def influence_scores(ref: Reference, samples: list[Tensor]) -> list[float]:
    """Worth of each layer."""
    return block_influence(measure(ref.policy.language, samples), 0)


def dropped_layers(ref: Reference) -> Values:
    """The cognition feature without the n least important layers, by the stored scores."""
    for _, match in ref.matches(r"layerdrop/n(\d+)/kept_layers"):
        prefix = f"layerdrop/n{match[1]}"
        scores = ref.array("bi/scores").tolist()
        layers = most_important(scores, len(scores) - int(match[1]))
        yield f"{prefix}/kept_layers", np.array(layers)
        feature, _ = ref.stages.cognition(Plan(layers=layers), *sequence(ref))
        yield f"{prefix}/cognition_feature", feature


# --- tokens ---------------------------------------------------------------------------------------


def sequence(ref: Reference) -> tuple[Tensor, Tensor]:
    """The stored visual tokens and ids."""
    return ref.tensor("vision/projected"), ref.tensor("in/input_ids")[None]


def token_plan(ref: Reference, match: re.Match[str]) -> TokenPlan:
    """The plan that a key's name describes; parts that the name leaves out are the primary ones."""
    source, rows, embedding, keep = match.groups()
    reading = f"evla/{source}/{rows or 'text'}/{embedding or 'hid'}"
    counts = [key for key, _ in ref.matches(rf"{reading}/K\d+/key")]
    if not counts:
        raise ConfigError(f"reference.npz: expected arrays '{reading}/K<n>/key', got none")
    key = len(ref.array(counts[0]))
    return TokenPlan(
        keep=int(keep or key),
        key=key,
        alpha=ALPHA,
        source=SOURCES[source],
        rows=ROWS[rows or "text"],
        embedding=EMBEDDINGS[embedding or "hid"],
    )


def planned_keys(ref: Reference, pattern: str) -> Iterator[tuple[str, TokenPlan]]:
    """Stored keys below `evla/` that the pattern matches, with their plans."""
    for key, _ in ref.matches(pattern):
        match = READING.fullmatch(key)
        if match:
            yield key, token_plan(ref, match)


def decoder_under(ref: Reference, plan: TokenPlan) -> TrimmedDecoder:
    """The decoder that drops tokens."""
    return cast(TrimmedDecoder, trim(ref.policy, Plan(tokens=plan)).language)


def token_scores(ref: Reference) -> Values:
    """Where tokens are dropped: the hidden states, attention, relevance, diversity."""
    visual, ids = sequence(ref)
    patches = visual.shape[1]
    last = torch.tensor([ids.shape[1] - 1])
    states = ref.policy.language.hidden_states(ref.policy.language.embed(visual, ids))
    yield "evla/hidden_after_layer2", states[1][0]
    for key, plan in planned_keys(ref, r"evla/.*/(probs|relevance|score01|diversity)"):
        decoder = decoder_under(ref, plan)
        name = key.rsplit("/", 1)[1]
        if name == "probs":
            yield key, attention_of(decoder, visual, ids, start=0)[0]
            continue
        scores = relevance(
            attention_of(decoder, visual, ids, start=1 + patches), plan.rows, last, patches
        )
        _, seen = decoder.observe(visual, ids, last)
        values = {
            "relevance": scores,
            "score01": min_max(scores),
            "diversity": diversity(seen.features, efficientvla_groups(plan, seen).key),
        }
        yield key, values[name][0]


def attention_of(decoder: TrimmedDecoder, visual: Tensor, ids: Tensor, start: int) -> Tensor:
    """Attention of the rows from `start` on that the plan reads, float[1, heads, n - start, n]."""
    x = decoder.embed(visual, ids)
    context = decoder.context(x)
    for layer in decoder.layers[: decoder.token_plan.after - 1]:
        x = layer(x, *context)
    return decoder.score(x, context, start)[1]


def token_ranks(ref: Reference) -> Values:
    """Key, task and diverse tokens in rank order."""
    visual, ids = sequence(ref)
    last = torch.tensor([ids.shape[1] - 1])
    names = {"key": "key", "task": "task", "div": "diverse"}
    for key, plan in planned_keys(ref, r"evla/.*/K\d+/(key|task|div)"):
        _, seen = decoder_under(ref, plan).observe(visual, ids, last)
        yield key, getattr(efficientvla_groups(plan, seen), names[key.rsplit("/", 1)[1]])[0]


def kept_tokens(ref: Reference) -> Values:
    """The kept tokens, through the stages."""
    for key, plan in planned_keys(ref, r"evla/.*/K\d+/kept"):
        kept = ref.stages.cognition(Plan(tokens=plan), *sequence(ref))[1]
        if kept is not None:
            yield key, kept[0]


def token_features(ref: Reference) -> Values:
    """The cognition feature on kept tokens, and the sample that it leads to."""
    for key, plan in planned_keys(ref, r"evla/.*/K\d+/cognition_feature"):
        yield key, ref.stages.cognition(Plan(tokens=plan), *sequence(ref))[0]
    for key, plan in planned_keys(ref, r"evla/.*/K\d+/ddim10_cfg1\.5_final_sample"):
        feature, _ = ref.stages.cognition(Plan(tokens=plan), *sequence(ref))
        yield key, ref.stages.sample(Plan(), feature, ref.tensor("action/noise"))[0]


# --- cache ----------------------------------------------------------------------------------------


def cache_plans(ref: Reference) -> Iterator[tuple[str, Plan]]:
    """Prefixes below `cache/` with their schedules; the steps are the config's where the name has
    none.
    """
    for key, match in ref.matches(r"cache/(?:ddim(\d+)_)?interval(\d+)/x"):
        steps = int(match[1] or ref.policy.cfg.diffusion.inference_steps)
        yield key.removesuffix("/x"), Plan(steps=steps, recompute=every(int(match[2]), steps))


def cache(ref: Reference) -> Values:
    """Trajectories step by step; normalised actions from the whole sampler at once."""
    noise = ref.tensor("action/noise")
    z = ref.tensor("dit/z_cond")[:, 0]
    for prefix, plan in cache_plans(ref):
        yield f"{prefix}/x", torch.cat([noise, *ref.stages.trajectory(plan, z, noise)])
        yield f"{prefix}/recomputed_steps", np.array(plan.recompute)
        if f"{prefix}/normalized" in ref.arrays:
            yield f"{prefix}/normalized", binarise(ref.stages.sample(plan, z, noise)[0].numpy())


def cache_units(ref: Reference) -> Values:
    """Each schedule's stored normalised actions in the units of each data set."""
    for key, match in ref.matches(r"(cache/[^/]+)/unnormalized/([^/]+)"):
        yield key, in_units(ref, ref.array(f"{match[1]}/normalized"), match[2])


# --- through exported graphs ----------------------------------------------------------------------


def left_out_when_exported(keys: list[str]) -> set[str]:
    """Arrays that the exported graphs are not compared with: each needs a graph of its own, which
    takes seconds.

    The primary reading is exported at every count of tokens, every other reading at its first.
    """
    first: dict[str, str] = {}
    left_out = set()
    for key in keys:
        match = re.fullmatch(r"evla/(.+)/(K\d+)/(?:kept|cognition_feature)", key)
        if match and match[1] != PRIMARY and first.setdefault(match[1], match[2]) != match[2]:
            left_out.add(key)
    return left_out
