"""What the dense policy gives for the arrays of a SmolVLA reference directory.

Each function yields (key, value) for the keys of one part, fed with the *stored* inputs of that
part, so a difference points at the part that made it. What is compared, and how closely, is in
`groups`.
"""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.groups import Values
from trimvla.export.reference.smolvla.directory import PIXELS, SmolVlaReference
from trimvla.export.reference.staged import Tensors
from trimvla.policies.smolvla.checkpoint import build
from trimvla.policies.smolvla.describe import describe, images_spec, prompt_spec
from trimvla.policies.smolvla.expert import Memory, Surroundings, as_layer
from trimvla.policies.smolvla.prefix import PrefixLayer, Rows
from trimvla.policies.smolvla.stages import stages, trajectory_stage
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.scale import LISTS, Scale, normalise_input, unnormalise
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.preprocess.letterbox import fit
from trimvla.runtime.preprocess.prompts import Prompter

DENSE = Plan()
STEP = re.compile(r"flow/step(\d+)/.+")


# --- around the network ---


def pixels(ref: SmolVlaReference) -> Values:
    """Images, fitted and put into the encoder's range; an absent camera is all -1."""
    spec = images_spec(ref.cfg, DENSE)
    for name in ref.features:
        there = f"in/{name}" in ref.arrays
        yield f"{PIXELS}{name}_mask", np.array([there])
        image = torch.zeros(1, spec.size, spec.size, 3)
        if there:
            image = torch.from_numpy(fit(ref.array(f"in/{name}"), spec))[None]
        yield PIXELS + name, ref.policy.vision.pixels(image)


def prompts(ref: SmolVlaReference) -> Values:
    """Stored ids -> instruction -> ids and their mask."""
    if ref.checkpoint.tokenizer is None:
        raise ConfigError(f"{ref.directory}: expected a tokenizer.json, got none")
    from tokenizers import Tokenizer

    prompter = Prompter.load(ref.checkpoint.tokenizer, prompt_spec(ref.cfg))
    tokenizer = Tokenizer.from_file(str(ref.checkpoint.tokenizer))
    for prefix in ("in", "second"):
        if f"{prefix}/input_ids" not in ref.arrays:
            continue
        stored, length = ref.ids(prefix)
        text = tokenizer.decode(stored[0, : int(length)].tolist(), skip_special_tokens=False)
        made, last = prompter.ids(text.removesuffix("\n"))
        padded = np.full(stored.shape, ref.cfg.prompt.pad_id)
        padded[:, : made.shape[1]] = made[:, : stored.shape[1]]
        yield f"{prefix}/input_ids", padded
        yield f"{prefix}/language_mask", np.arange(stored.shape[1])[None] <= last


def state(ref: SmolVlaReference) -> Values:
    """The robot's state, normalised and padded."""
    spec = describe(ref.checkpoint, DENSE).state
    assert spec is not None
    values = ref.array("in/observation.state").astype(np.float32)
    made = normalise_input(values, _scale(ref, "state", spec.epsilon))
    yield "in/state_normalized", made[None]
    padded = np.zeros((1, ref.cfg.padded_state_dim), np.float32)
    padded[0, : len(made)] = made
    yield "in/state_padded", padded


def unnormalized(ref: SmolVlaReference) -> Values:
    """Stored normalised actions in the robot's units, differences counted in units of the scale."""
    scale = _scale(ref, "action", 0.0)
    key = "action/unnormalized"
    stored = ref.array(key)
    made = unnormalise(ref.array("action/normalized"), scale)
    unit = np.maximum(1.0, np.abs(np.array(scale.high)) if scale.high else 1.0)
    yield key, stored + (made - stored) / unit


def _scale(ref: SmolVlaReference, feature: str, epsilon: float) -> Scale:
    mode = ref.checkpoint.extra["modes"][feature]
    lists = [ref.checkpoint.statistics[feature][name] for name in LISTS[mode]]
    low, high = (tuple(map(float, values)) for values in lists) if lists else ((), ())
    return Scale(low, high, None, mode, epsilon)


# --- vision ---


def vision(ref: SmolVlaReference) -> Values:
    """The encoder from the stored pixels, the connector from the stored features."""
    tower = ref.policy.vision
    for name in ref.present:
        x = tower.encoder.embed(ref.tensor(PIXELS + name))
        yield f"vision/{name}/embeddings", x
        states = []
        for layer in tower.encoder.layers:
            x = layer(x)
            states.append(x)
        yield f"vision/{name}/layers", torch.stack(states)
        yield f"vision/{name}/features", tower.encoder.post_layernorm(x)
        yield f"vision/{name}/connector", tower.project(ref.tensor(f"vision/{name}/features"))


# --- prefix ---


def stored_rows(ref: SmolVlaReference) -> Rows:
    """The stored sequence in front of the first layer, in our order."""
    _, length = ref.ids()
    x = ref.ours(ref.tensor("prefix/embeddings"), 1)
    return ref.policy.prefix.rows(x, length, len(ref.visual_map))


def embeddings(ref: SmolVlaReference) -> Values:
    """The sequence from the stored visual tokens, ids and state."""
    tokens = torch.cat([ref.tensor(f"vision/{name}/connector")[0] for name in ref.present])
    ids, _ = ref.ids()
    made = ref.policy.prefix.embed(tokens, ids, ref.tensor("in/state_padded"))
    yield "prefix/embeddings", ref.like_theirs(made, "prefix/embeddings", 1)


def places(ref: SmolVlaReference) -> Values:
    """Who sees whom, what opens a block, and positions; padding sees nothing."""
    rows = stored_rows(ref)
    valid = rows.valid
    padded = np.zeros_like(ref.array("prefix/pad_mask"))
    padded[:, ref.rows] = valid.numpy()
    yield "prefix/pad_mask", padded
    mask = (rows.mask & valid[..., None]).numpy()[0]
    made = np.zeros_like(ref.array("prefix/attention_mask"))
    made[0][np.ix_(ref.rows, ref.rows)] = mask
    yield "prefix/attention_mask", made
    blocks = np.zeros_like(ref.array("prefix/block_mask"))
    state_row = len(ref.visual_map)
    blocks[0, -1] = bool(mask[state_row].sum() > mask[0].sum())
    yield "prefix/block_mask", blocks
    places = torch.arange(len(ref.rows))
    _, length = ref.ids()
    places[state_row] = ref.policy.prefix.visual + length[0]
    places[state_row + 1 :] -= 1
    yield "prefix/position_ids", ref.like_theirs(places[None], "prefix/position_ids", 1)


def prefix(ref: SmolVlaReference) -> Values:
    """Every layer from the stored sequence, the deepest whole."""
    inputs, keys, values, last = run_prefix(ref)
    stored = "prefix/layer_inputs"
    yield stored, ref.like_theirs(torch.cat(inputs), stored, 1)
    for name, parts in (("keys", keys), ("values", values)):
        made = torch.cat(parts).transpose(1, 2)
        yield f"prefix/{name}", ref.like_theirs(made, f"prefix/{name}", 1)
    _, norm = ref.deepest()
    yield "prefix/last_layer_output", ref.like_theirs(last, "prefix/last_layer_output", 1)
    yield "prefix/final_normed", ref.like_theirs(norm(last), "prefix/final_normed", 1)


def run_prefix(
    ref: SmolVlaReference,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Inputs, keys and values of every layer, and what comes out of the deepest one."""
    rows = stored_rows(ref)
    deepest, _ = ref.deepest()
    inputs: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for layer in (*ref.policy.prefix.layers[:-1], deepest):
        assert isinstance(layer, PrefixLayer)
        inputs.append(rows.x)
        x, own = layer(rows)
        keys.append(own.keys)
        values.append(own.values)
        rows = replace(rows, x=x)
    return inputs, keys, values, rows.x


# --- expert ---


def stored_memory(ref: SmolVlaReference) -> tuple[Memory, Surroundings]:
    """What the expert reads of the stored keys and values."""
    layers = ref.stored_layers()
    memory = ref.policy.memory(layers, [ref.valid_ours] * len(layers))
    _, length = ref.ids()
    behind = ref.policy.behind(length)
    return memory, ref.policy.expert.surroundings(memory, behind, ref.policy.angles)


def cross(ref: SmolVlaReference) -> Values:
    """Projected keys and values of the layers that look at the prefix alone."""
    memory, _ = stored_memory(ref)
    for index, (layer, read) in enumerate(
        zip(ref.policy.expert.layers, memory.layers, strict=True)
    ):
        if not as_layer(layer).joined:
            for name, part in (("keys", read.keys), ("values", read.values)):
                key = f"expert/cross{index}/{name}"
                yield key, ref.like_theirs(part.transpose(1, 2), key, 1)


def times(ref: SmolVlaReference) -> Values:
    """Embeddings of the stored times, and the velocity of the noise at each."""
    stored = ref.array("time/t")
    table = ref.policy.expert.time_table(stored.astype(float).tolist())
    yield "time/embedding", table
    memory, around = stored_memory(ref)
    velocity = ref.policy.expert.velocity(memory, around, table)
    noise = ref.tensor("in/noise")
    yield "time/v_at_noise", torch.cat([velocity(noise, index) for index in range(len(stored))])


def schedule(ref: SmolVlaReference) -> Values:
    """Times of the Euler steps."""
    yield "flow/t", np.array([step.t for step in ref.policy.steps])


def surroundings(ref: SmolVlaReference) -> Values:
    """What the actions see in the layers that attend to them too, and their positions."""
    _, around = stored_memory(ref)
    _, length = ref.ids()
    joined = [as_layer(layer).joined for layer in ref.policy.expert.layers]
    key = "flow/attention_mask"
    if True in joined:
        mask = around.masks[joined.index(True)][0].numpy()
        made = np.zeros_like(ref.array(key))
        count = len(ref.rows)
        made[0][:, ref.rows] = mask[:, :count]
        made[0][:, len(ref.valid) :] = mask[:, count:]
        yield key, made
    steps = torch.arange(ref.cfg.horizon)
    yield "flow/position_ids", ref.policy.behind(length)[:, None] + steps


def velocities(ref: SmolVlaReference) -> Values:
    """The velocity at the stored x and t of every step, and what lies inside the expert."""
    expert = ref.policy.expert
    memory, around = stored_memory(ref)
    table = expert.time_table(ref.array("flow/t").astype(float).tolist())
    velocity = expert.velocity(memory, around, table)
    x = ref.tensor("flow/x")
    yield "flow/v", torch.cat([velocity(x[k][None], k) for k in range(len(x))])
    found = {int(match[1]) for key in ref.keys if (match := STEP.fullmatch(key))}
    for step in sorted(found):
        tokens = expert.embed(x[step][None], table[step])
        states = expert.run(tokens, memory, around)
        yield f"flow/step{step}/suffix_embeddings", tokens
        yield f"flow/step{step}/layer_inputs", torch.cat([tokens, *states[:-1]])
        yield f"flow/step{step}/last_layer_output", states[-1]
        yield f"flow/step{step}/final_normed", expert.norm(states[-1])


# --- through the stages ---


def remembered(ref: SmolVlaReference, plan: Plan, prompt: str = "in") -> Tensors:
    """Everything up to the action stage, from the stored pixels, ids and state."""
    vision_stage, language, _ = stages(ref.cfg, plan)
    ids, length = ref.ids(prompt)
    tensors = {
        "images": ref.images,
        "input_ids": ids,
        "last": length - 1,
        "state": ref.tensor("in/state_padded"),
        "noise": ref.tensor("in/noise"),
    }
    tensors |= ref.runs.run(plan, vision_stage, tensors)
    return tensors | ref.runs.run(plan, language, tensors)


def sampled(ref: SmolVlaReference, plan: Plan, prompt: str = "in") -> np.ndarray:
    """The action stage's chunk float[1, H, A], cut to the robot's dimensions."""
    action = stages(ref.cfg, plan)[-1]
    made = ref.runs.run(plan, action, remembered(ref, plan, prompt))["actions"]
    return made[..., : ref.cfg.action_dim].numpy()


def trajectory(ref: SmolVlaReference, plan: Plan) -> Tensor:
    """float[steps + 1, H, A]: the noise, then x after every step."""
    stage = trajectory_stage(ref.cfg, plan)
    return ref.runs.run(plan, stage, remembered(ref, plan))["trajectory"]


def sample(ref: SmolVlaReference) -> Values:
    """The trajectory from the stored pixels, ids, state and noise."""
    made = trajectory(ref, DENSE)
    yield "flow/x", made[:-1]
    yield "flow/x_final", made[-1:]


def actions(ref: SmolVlaReference) -> Values:
    """Chunks for both instructions."""
    yield "action/normalized", sampled(ref, DENSE)
    if "second/normalized" in ref.arrays:
        yield "second/normalized", sampled(ref, DENSE, "second")


def shifted(ref: SmolVlaReference) -> Values:
    """What the same weights give where patches have the positions of transformers 4.57."""
    cfg = msgspec.structs.replace(ref.cfg, patch_positions="shifted")
    policy = build(cfg, ref.checkpoint.weights)
    for name in ref.present:
        yield f"shifted/vision/{name}/features", policy.vision.encoder(ref.tensor(PIXELS + name))
    ids, length = ref.ids()
    noise = ref.tensor("in/noise")
    own = ref.tensor("in/state_padded")
    x = policy(ref.images, ids, length, own, noise)
    yield "shifted/flow/x_final", x
    yield "shifted/action/normalized", x[..., : cfg.action_dim]
