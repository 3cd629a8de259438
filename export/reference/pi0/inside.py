"""What the policy's modules give inside, for the arrays of a reference directory.

Each function yields (key, value) for the keys of one part, fed with the *stored* inputs of that
part, so a difference points at the part that made it. Weights that no action depends on are read
here alone, for the arrays behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.groups import Values
from trimvla.export.reference.pi0.directory import Pi0Reference
from trimvla.policies.nn.gemma import GemmaLayer, Heads, KeysValues
from trimvla.policies.nn.llama import RmsNorm
from trimvla.policies.pi0.checkpoint import openpi_names
from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.expert import ExpertPass, Memory, normalise
from trimvla.policies.pi0.layout import DECODER
from trimvla.policies.pi0.prefix import Rows
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.runtime.bundle.plan import Plan

# --- vision ---


def vision(ref: Pi0Reference) -> Values:
    """Every boundary of the encoder from the stored pixels, absent cameras' too."""
    encoder = ref.policy.vision.encoder
    projector = ref.policy.vision.projector
    for feature in (*ref.features, *ref.absent):
        prefix = f"vision/{feature}"
        if f"{prefix}/features" not in ref.arrays:
            continue
        x = encoder.embed(ref.tensor(f"pixels/{feature}"))
        yield f"{prefix}/embeddings", x
        outputs = []
        for layer in encoder.layers:
            x = layer(x)
            outputs.append(x)
        yield f"{prefix}/layers", torch.stack(outputs)
        yield f"{prefix}/features", encoder.post_layernorm(x)
        yield f"{prefix}/connector", projector(ref.tensor(f"{prefix}/features"))


# --- prefix ---


def prefix_rows(ref: Pi0Reference, x: Tensor | None = None) -> Rows:
    """The sequence that the stored call begins with, or another stream in its place."""
    ids, length = ref.ids("in")
    language = ref.policy.language
    visual = ref.visual[None]
    return language.rows(language.embed(visual, ids) if x is None else x, length, visual.shape[1])


def prefix_masks(ref: Pi0Reference) -> Values:
    """Positions and who sees whom; the public masks are worked out here from ours."""
    rows = prefix_rows(ref)
    valid = rows.valid[0]
    count = valid.shape[0]
    yield "prefix/pad_mask", ref.at_valid("prefix/pad_mask", rows.valid, (1,), valid)
    yield "prefix/block_mask", np.zeros_like(ref.array("prefix/block_mask"))  # one block
    sees = rows.valid[:, None].expand(-1, count, -1)
    key = "prefix/attention_mask"
    yield key, ref.at_valid(key, sees, (1, 2), valid)
    positions = torch.arange(count)[None]
    yield "prefix/position_ids", ref.at_valid("prefix/position_ids", positions, (1,), valid)


def prefix_layers(ref: Pi0Reference) -> Values:
    """The sequence from the stored tokens; every layer from the stored sequence."""
    rows = prefix_rows(ref)
    valid = rows.valid[0]
    yield "prefix/embeddings", ref.at_valid("prefix/embeddings", rows.x, (1,), valid)
    streams = list(streams_of(ref))
    inputs = torch.cat(streams[:-1])
    yield "prefix/layer_inputs", ref.at_valid("prefix/layer_inputs", inputs, (1,), valid)
    last = streams[-1]
    yield "prefix/last_layer_output", ref.at_valid("prefix/last_layer_output", last, (1,), valid)
    normed = dead_norm(ref.directory, ref.policy.cfg)(last)
    yield "prefix/final_normed", ref.at_valid("prefix/final_normed", normed, (1,), valid)


def streams_of(ref: Pi0Reference) -> Iterator[Tensor]:
    """float[1, n, D] before each layer and behind the last, from the stored embeddings."""
    stored = ref.tensor("prefix/embeddings")
    rows = prefix_rows(ref, stored[:, torch.from_numpy(ref.rows(stored.shape[1]))])
    x = rows.x
    for layer in all_layers(ref):
        yield x
        x, _ = layer(x, rows.angles, rows.valid[:, None])
    yield x


def all_layers(ref: Pi0Reference) -> list[GemmaLayer]:
    """Every decoder layer whole, the deepest too."""
    kept = [layer for layer in ref.policy.language.layers if isinstance(layer, GemmaLayer)]
    return [*kept, dead_layer(ref.directory, ref.policy.cfg)]


@lru_cache(maxsize=2)
def dead_layer(directory: Path, cfg: Pi0Config) -> GemmaLayer:
    """The deepest layer with the weights that no action depends on."""
    language = cfg.language
    heads = Heads(language.heads, language.kv_heads, language.head_dim)
    made = GemmaLayer(language.width, heads, language.mlp_hidden, language.norm_eps)
    stored = {
        name: _stored(directory, f"layers.{language.layers - 1}.{name}")
        for name in made.state_dict()
    }
    made.load_state_dict(stored)
    return made.eval()


@lru_cache(maxsize=2)
def dead_norm(directory: Path, cfg: Pi0Config) -> RmsNorm:
    """The decoder's final norm."""
    made = RmsNorm(cfg.language.width, cfg.language.norm_eps)
    made.load_state_dict({"weight": _stored(directory, "norm.weight")})
    return made


def _stored(directory: Path, name: str) -> Tensor:
    files = SafetensorsFiles(directory)
    stored = files[openpi_names(files)[DECODER + name]].float()
    return stored + 1.0 if "norm" in name else stored


def keys(ref: Pi0Reference) -> Values:
    """The language stage's output from the stored tokens and ids."""
    memory = ref.memory(Plan(), ref.visual, *ref.ids("in"))
    valid = prefix_rows(ref).valid[0]
    for name in ("keys", "values"):
        made = memory[name].transpose(1, 2)[:, : valid.shape[0]]
        yield f"prefix/{name}", ref.at_valid(f"prefix/{name}", made, (1,), valid)


# --- flow ---


def stored_memory(ref: Pi0Reference) -> Memory:
    """The stored keys and values."""
    rows = prefix_rows(ref)
    layers = []
    for keys_at, values_at in zip(
        ref.tensor("prefix/keys"), ref.tensor("prefix/values"), strict=True
    ):
        ours = torch.from_numpy(ref.rows(keys_at.shape[0]))
        keys_, values = (part[ours].transpose(0, 1)[None] for part in (keys_at, values_at))
        layers.append(KeysValues(keys_, values))
    _, length = ref.ids("in")
    return Memory(tuple(layers), (rows.valid,) * len(layers), ref.policy.cfg.visual_tokens + length)


def expert_pass(ref: Pi0Reference, x: Tensor, t: float) -> tuple[Tensor, ExpertPass, Tensor]:
    """All rows of one step as the public code runs them: suffix embeddings, the layers, this step's
    table.
    """
    expert = ref.policy.expert
    time = expert.time_table([t])[0]
    tokens = expert.embed(x, time)
    if ref.state is not None:
        tokens = torch.cat([expert.state_token(ref.state), tokens], dim=1)
    passed = expert.run(tokens, stored_memory(ref), time, state_first=ref.state is not None)
    return tokens, passed, time


def velocity(ref: Pi0Reference, x: Tensor, t: float) -> Tensor:
    """float[1, H, A] at any time."""
    _, passed, time = expert_pass(ref, x, t)
    final = ref.policy.expert.final_modulation(time)
    return ref.policy.expert.decode(passed.x[:, -x.shape[1] :], final)


def flow(ref: Pi0Reference) -> Values:
    """Velocities at the stored x and t, and what lies inside the expert."""
    xs = ref.tensor("flow/x")
    times = ref.array("flow/t").tolist()
    velocities = [velocity(ref, x[None], t) for x, t in zip(xs, times, strict=True)]
    yield "flow/v", torch.cat(velocities)
    expert = ref.policy.expert
    for key, match in ref.matches(r"flow/step(\d+)/suffix_embeddings"):
        step = int(match[1])
        prefix = f"flow/step{step}"
        tokens, passed, time = expert_pass(ref, xs[step : step + 1], times[step])
        yield key, tokens
        streams = [tokens, *(layer.x for layer in passed.layers)]
        yield f"{prefix}/layer_inputs", torch.cat(streams[:-1])
        yield f"{prefix}/last_layer_output", streams[-1]
        final = expert.final_modulation(time)
        yield f"{prefix}/final_normed", normalise(expert.norm, streams[-1], final)
        if expert.modulated:
            yield f"{prefix}/adarms_condition", expert.condition([times[step]])


def flow_masks(ref: Pi0Reference) -> Values:
    """Positions of the expert's rows, and who sees whom."""
    memory = stored_memory(ref)
    expert = ref.policy.expert
    key = "flow/attention_mask"
    stored = ref.array(key)
    rows = stored.shape[1]
    total = stored.shape[2] - stored.shape[1]
    ours = expert.mask(memory.valid[0], rows, ref.state is not None).expand(-1, rows, -1).numpy()
    made = np.zeros_like(stored)
    columns = np.concatenate([ref.rows(total), np.arange(total, total + rows)])
    made[:, :, columns] = ours
    yield key, made
    yield "flow/position_ids", memory.start[:, None] + torch.arange(rows)


def times(ref: Pi0Reference) -> Values:
    """The time's embedding, and the velocity at the stored noise for every stored time."""
    stored = ref.array("time/t").tolist()
    yield "time/embedding", ref.policy.expert.embed_time(stored)
    noise = ref.tensor("in/noise")
    yield "time/v_at_noise", torch.cat([velocity(ref, noise, t) for t in stored])
