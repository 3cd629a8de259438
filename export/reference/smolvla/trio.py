"""What trimmed SmolVLA policies give for the arrays of a reference directory: influence of layers,
dropped layers, chosen tokens, reused steps.

The public code has none of these; the arrays are made from its modules. Yields (key, value) as
`dense` does.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.groups import Values
from trimvla.export.reference.smolvla.dense import (
    remembered,
    run_prefix,
    sampled,
    stored_memory,
    stored_rows,
    trajectory,
)
from trimvla.export.reference.smolvla.directory import SmolVlaReference
from trimvla.policies.nn.cachers import every
from trimvla.policies.smolvla.prefix import PrefixLayer, relevance
from trimvla.runtime.bundle.plan import Plan, TokenPlan

CACHE = re.compile(r"cache/interval(\d+)/(x|runs)")
KEPT = re.compile(r"tokens/K(\d+)/(kept|x|keys_last)")
DROPPED = re.compile(r"layers/(both|expert)([^/]*)/(normalized|x)")
AFTER = 2  # layers that see every token, in the stored arrays


# --- layers ---


def influence(ref: SmolVlaReference) -> Values:
    """1 - mean cosine between what goes into a layer and what comes out."""
    inputs, _, _, last = run_prefix(ref)
    valid = ref.valid_ours[0]
    streams = [x[:, valid] for x in (*inputs, last)]
    yield "bi/prefix", np.array(changes(streams))
    expert = ref.policy.expert
    memory, around = stored_memory(ref)
    table = expert.time_table(ref.array("flow/t").astype(float).tolist())
    rows = []
    for step, x in enumerate(ref.tensor("flow/x")):
        tokens = expert.embed(x[None], table[step])
        rows.append(changes([tokens, *expert.run(tokens, memory, around)]))
    yield "bi/expert_per_step", np.array(rows)


def changes(streams: list[Tensor]) -> list[float]:
    """1 - mean cosine of each stream with the next, over rows, in float64."""
    found = []
    for before, after in pairwise(streams):
        cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
        found.append(1.0 - float(cosine.mean()))
    return found


def dropped_layers(ref: SmolVlaReference) -> Values:
    """Chunks and trajectories without some pairs, or without some of the expert's layers."""
    for key in ref.keys:
        match = DROPPED.fullmatch(key)
        if match is None:
            continue
        kept = tuple(ref.array(f"layers/{match[1]}{match[2]}/kept").tolist())
        plan = Plan(layers=kept) if match[1] == "both" else Plan(expert_layers=kept)
        yield key, sampled(ref, plan) if match[3] == "normalized" else trajectory(ref, plan)


# --- tokens ---


def attention(ref: SmolVlaReference) -> Values:
    """Probabilities inside the second layer, and how much text, state and expert look at a
    token.
    """
    rows = stored_rows(ref)
    x = ref.ours(ref.tensor("prefix/layer_inputs")[AFTER - 1][None], 1)
    rows = replace(rows, x=x)
    layer = ref.policy.prefix.layers[AFTER - 1]
    assert isinstance(layer, PrefixLayer)
    whole = layer.attention_of(rows, slice(None))[0]
    key = f"tokens/attention{AFTER - 1}"
    made = ref.array(key).copy()
    counted = [place for place, row in enumerate(ref.rows) if ref.valid[row]]
    theirs = [ref.rows[place] for place in counted]
    made[:, theirs] = 0.0
    made[:, np.array(theirs)[:, None], theirs] = whole[:, counted][:, :, counted].numpy()
    yield key, made
    _, length = ref.ids()
    for of in ("text", "state"):
        yield _looked(ref, of, relevance(layer, rows, of, length)[0])
    yield _looked(ref, "expert", expert_relevance(ref))


def expert_relevance(ref: SmolVlaReference) -> Tensor:
    """Of the expert's first layer that looks at the prefix alone, at the first step: float[V]."""
    memory, around = stored_memory(ref)
    policy = ref.policy
    tokens = policy.expert.embed(ref.tensor("in/noise"), policy.times[0])
    looked = policy.expert.looked(tokens, memory, around).mean(dim=1).sum(dim=1)
    return looked[0, : len(ref.visual_map)]


def _looked(ref: SmolVlaReference, of: str, scores: Tensor) -> tuple[str, np.ndarray]:
    """Relevance in their raster; absent cameras as stored."""
    key = f"tokens/relevance_{of}"
    made = ref.array(key).copy()
    made[ref.visual_map] = scores.numpy()
    return key, made


def token_plan(keep: int) -> Plan:
    """The most relevant by the text, as the stored arrays have them."""
    return Plan(tokens=TokenPlan(selector="relevance", keep=keep, after=AFTER))


def kept_tokens(ref: SmolVlaReference) -> Values:
    """Raster indices of the tokens that stay, through the stages."""
    for key in ref.keys:
        match = KEPT.fullmatch(key)
        if match is not None and match[2] == "kept":
            kept = remembered(ref, token_plan(int(match[1])))["kept"][0]
            yield key, np.array(ref.visual_map)[kept.numpy()]


def token_samples(ref: SmolVlaReference) -> Values:
    """Trajectories on kept tokens."""
    for key in ref.keys:
        match = KEPT.fullmatch(key)
        if match is not None and match[2] == "x":
            yield key, trajectory(ref, token_plan(int(match[1])))


def token_keys(ref: SmolVlaReference) -> Values:
    """Keys of the last layer on kept tokens: [kept, text, state], padding as stored."""
    tokens = torch.cat([ref.tensor(f"vision/{name}/connector")[0] for name in ref.present])
    ids, length = ref.ids()
    for key in ref.keys:
        match = KEPT.fullmatch(key)
        if match is None or match[2] != "keys_last":
            continue
        from trimvla.policies.smolvla.trimmed import trim

        keep = int(match[1])
        prefix = trim(ref.policy, token_plan(keep)).prefix
        last = prefix(tokens, ids, length, ref.tensor("in/state_padded")).layers[-1]
        own = last.keys[0].transpose(0, 1).numpy()  # [kept, state, text]
        made = ref.array(key).copy()
        count = int(length[0])
        made[0, :keep] = own[:keep]
        made[0, keep : keep + count] = own[keep + 1 : keep + 1 + count]
        made[0, -1] = own[keep]
        yield key, made


# --- cache ---


def cache(ref: SmolVlaReference) -> Values:
    """Trajectories whose expert runs at every so manieth step only, and those steps."""
    steps = len(ref.policy.steps)
    for key in ref.keys:
        match = CACHE.fullmatch(key)
        if match is None:
            continue
        runs = every(int(match[1]), steps)
        yield key, np.array(runs) if match[2] == "runs" else trajectory(ref, Plan(recompute=runs))


def left_out_when_exported(keys: list[str]) -> set[str]:
    """Arrays that the exported graphs are not compared with: each needs graphs of its own, which
    takes seconds. The first of each kind is exported.
    """
    first: dict[str, str] = {}
    left_out = set()
    for key in keys:
        for pattern in (CACHE, KEPT):
            match = pattern.fullmatch(key)
            staged = match is not None and match[2] in ("x", "kept")
            if (
                match is not None
                and staged
                and first.setdefault(pattern.pattern, match[1]) != match[1]
            ):
                left_out.add(key)
    return left_out
