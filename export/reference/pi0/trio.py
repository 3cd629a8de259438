"""What trimmed policies give for the arrays of a reference directory: layers, tokens, reused steps,
importance.

The public code has none of these; the arrays are made with its own modules (NOTES.md of the
directory). Yields (key, value) as `inside` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimvla.export.reference.groups import Values
from trimvla.export.reference.pi0.directory import DENSE, TRAJECTORY, Pi0Reference
from trimvla.export.reference.pi0.inside import (
    expert_pass,
    prefix_rows,
    stored_memory,
    streams_of,
)
from trimvla.export.reference.pi0.samples import robots
from trimvla.policies.nn.cachers import every
from trimvla.policies.nn.gemma import Angles, GemmaLayer
from trimvla.policies.nn.grouped import grouped_probabilities
from trimvla.policies.pi0.expert import ExpertLayer, normalise
from trimvla.policies.pi0.prefix import Rows
from trimvla.runtime.bundle.plan import Plan, TokenPlan

AFTER = 2  # layers of the stored choices that see every token

# --- layers ---


def pairs(ref: Pi0Reference) -> Values:
    """The action stage without some pairs."""
    for key, match in ref.matches(r"layers/both(\w+)/normalized"):
        kept = ref.array(f"layers/both{match[1]}/kept")
        plan = Plan(layers=tuple(kept.tolist()))
        memory = ref.memory(plan, ref.visual, *ref.ids("in"))
        yield key, robots(ref, ref.sample("action", plan, memory))


def expert_layers(ref: Pi0Reference) -> Values:
    """Trajectories without some of the expert's layers."""
    for key, match in ref.matches(r"layers/expert(\w+)/x"):
        kept = ref.array(f"layers/expert{match[1]}/kept")
        plan = Plan(expert_layers=tuple(kept.tolist()))
        memory = ref.memory(plan, ref.visual, *ref.ids("in"))
        yield key, ref.sample(TRAJECTORY, plan, memory)


def kept_layers(ref: Pi0Reference) -> Values:
    """What is left when the layers in a key's name are dropped."""
    layers = ref.policy.cfg.language.layers
    for key, match in ref.matches(r"layers/(?:both|expert)(\d+)/kept"):
        stored = set(ref.array(key).tolist())
        dropped = [index for index in range(layers) if index not in stored]
        # one digit a layer, where there are no more than ten
        if "".join(map(str, dropped)) != match[1]:
            dropped = [int(digit) for digit in match[1]]
        yield key, np.array([index for index in range(layers) if index not in dropped])


# --- tokens ---


def token_plan(keep: int) -> Plan:
    """The stored choice: the most relevant by the text's rows in layer index 1."""
    return Plan(tokens=TokenPlan(keep=keep, selector="relevance", after=AFTER))


def scores(ref: Pi0Reference) -> Values:
    """Attention inside layer index 1, and the relevance it gives visual tokens; the expert's at the
    first step.
    """
    rows = prefix_rows(ref)
    inputs = list(streams_of(ref))
    at = Rows(inputs[AFTER - 1], rows.angles, rows.valid, rows.visual)
    language = ref.family.trim(ref.policy, token_plan(1)).language
    layer = language.layers[AFTER - 1]
    assert isinstance(layer, GemmaLayer)
    attention = language.attention_of(layer, at)[0]
    key = "tokens/attention1"
    if key in ref.arrays:
        yield key, ref.at_valid(key, attention, (1, 2), rows.valid[0])
    _, length = ref.ids("in")
    yield (
        "tokens/relevance_text",
        padded(ref, "tokens/relevance_text", language.relevance(layer, at, length)[0]),
    )
    yield "tokens/relevance_expert", padded(ref, "tokens/relevance_expert", expert_relevance(ref))


def padded(ref: Pi0Reference, key: str, ours: Tensor) -> np.ndarray:
    """Zeros for the tokens of absent cameras, which nobody looks at."""
    made = np.zeros_like(ref.array(key)) if key in ref.arrays else np.zeros(len(ours))
    made[: len(ours)] = ours.numpy()
    return made


def expert_relevance(ref: Pi0Reference) -> Tensor:
    """Attention of the expert's layer index 1 at the first step, float[V]: over heads the mean,
    over rows the sum.
    """
    expert = ref.policy.expert
    tokens, passed, time = expert_pass(ref, ref.tensor("in/noise"), float(ref.array("flow/t")[0]))
    layer = expert.layers[1]
    memory = stored_memory(ref)
    assert isinstance(layer, ExpertLayer)
    positions = memory.start[:, None] + torch.arange(tokens.shape[1])
    angles = Angles.of(positions, expert.head_dim, expert.theta)
    modulation = expert.modulation(time, 1)
    first = None if modulation is None else modulation[0]
    normed = normalise(layer.input_layernorm, passed.layers[0].x, first)
    q = layer.self_attn.queries(normed, angles.cos, angles.sin)
    seen = memory.layers[1].followed_by(passed.layers[1].own)
    mask = expert.mask(memory.valid[1], tokens.shape[1], ref.state is not None)
    looked = grouped_probabilities(q, seen.keys, mask).flatten(1, 2)
    return looked.mean(dim=1).sum(dim=1)[0, : ref.policy.cfg.visual_tokens]


def kept_tokens(ref: Pi0Reference) -> Values:
    """Which tokens stay, and the deepest layer's keys."""
    for key, match in ref.matches(r"tokens/K(\d+)/kept"):
        memory = kept_memory(ref, int(match[1]))
        yield key, memory["kept"][0]


def kept_memory(ref: Pi0Reference, keep: int) -> dict[str, Tensor]:
    """The language stage where so many tokens stay."""
    return ref.memory(token_plan(keep), ref.visual, *ref.ids("in"))


def kept_keys(ref: Pi0Reference) -> Values:
    """The deepest layer's keys where tokens are dropped."""
    for key, match in ref.matches(r"tokens/K(\d+)/keys_last"):
        keep = int(match[1])
        made = kept_memory(ref, keep)["keys_kept"][-1:].transpose(1, 2)
        stored = ref.array(key).copy()
        count = keep + int(ref.ids("in")[1])
        stored[:, :count] = made[:, :count].numpy()
        yield key, stored


def kept_trajectories(ref: Pi0Reference) -> Values:
    """Trajectories where tokens are dropped."""
    for key, match in ref.matches(r"tokens/K(\d+)/x"):
        keep = int(match[1])
        yield key, ref.sample(TRAJECTORY, token_plan(keep), kept_memory(ref, keep))


# --- reused steps ---


def schedules(ref: Pi0Reference) -> Iterator[tuple[str, Plan]]:
    """Prefixes below `cache/` with their plans."""
    for key, match in ref.matches(r"cache/interval(\d+)/x"):
        recompute = every(int(match[1]), ref.policy.steps)
        yield key.removesuffix("/x"), Plan(recompute=recompute)


def cache(ref: Pi0Reference) -> Values:
    """Trajectories that reuse the layers' sum, with the gates of the step that made it."""
    memory = ref.memory(DENSE, ref.visual, *ref.ids("in"))
    for prefix, plan in schedules(ref):
        yield f"{prefix}/x", ref.sample(TRAJECTORY, plan, memory, sums=True)


def cache_steps(ref: Pi0Reference) -> Values:
    """Steps that run the layers."""
    for prefix, plan in schedules(ref):
        yield f"{prefix}/runs", np.array(plan.recompute)


# --- importance ---


def influence(ref: Pi0Reference) -> Values:
    """Block influence of the decoder's layers over valid rows, and of the expert's at every
    step.
    """
    valid = prefix_rows(ref).valid[0]
    streams = [x[0][valid] for x in streams_of(ref)]
    yield "bi/prefix", block_influence(streams)
    xs = ref.tensor("flow/x")
    times = ref.array("flow/t").tolist()
    steps = []
    for x, t in zip(xs, times, strict=True):
        tokens, passed, _ = expert_pass(ref, x[None], t)
        steps.append(block_influence([tokens[0], *(layer.x[0] for layer in passed.layers)]))
    yield "bi/expert_per_step", torch.stack(steps)


def block_influence(streams: list[Tensor]) -> Tensor:
    """1 - mean cosine of what enters and what leaves each layer: float[n, width] each ->
    float64[layers].
    """
    wide = [x.double() for x in streams]
    return torch.stack([1.0 - F.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(wide)])
