"""What the policy's modules give for the arrays of a DB-CogACT reference directory.

Each function yields (key, value) for the keys of one part, fed with the *stored* inputs of that
part, so a difference points at the part that made it. The head's arrays are CogACT's
(`reference.modules`).
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from trimvla.export.reference import modules
from trimvla.export.reference.dbcogact.directory import DENSE, DbReference
from trimvla.export.reference.groups import Values
from trimvla.policies.dbcogact.layout import CLIP
from trimvla.policies.nn.clip import ClipVision
from trimvla.policies.nn.dit import DitBlock
from trimvla.policies.nn.llama import rotary

APART = ("attn_outputs", "mlp_outputs", "block_outputs")
"""Arrays of a timestep's inside, block by block."""


def vision(ref: DbReference) -> Values:
    """CLIP's layers from the stored pixels, the dead last one included; the projector."""
    pixels = ref.tensor("in/pixel_clip")
    encoder = ref.policy.vision.encoder
    whole = whole_encoder(ref)
    embedded = encoder.embed(pixels)
    yield "vision/embeddings", embedded
    yield "vision/pre_norm", encoder.pre_layrnorm(embedded)
    yield "vision/layers", torch.stack(whole.states(pixels))
    yield "vision/clip_features", encoder(pixels)
    yield "vision/projected", ref.policy.vision.project(ref.tensor("vision/clip_features"))


def whole_encoder(ref: DbReference) -> ClipVision:
    """The encoder with the layers behind its feature, whose weights the checkpoint holds too."""
    cfg = ref.policy.cfg.vision
    made = ClipVision(msgspec.structs.replace(cfg, feature_block=cfg.depth - 1))
    stored = ref.checkpoint.weights.files  # pyright: ignore[reportAttributeAccessIssue]
    live = ref.policy.vision.encoder.state_dict()
    dead = {
        name: stored[f"{CLIP}encoder.{name}"].float()
        for name in made.state_dict()
        if name not in live
    }
    made.load_state_dict({**live, **dead})
    return made.eval()


def sequence(ref: DbReference) -> Values:
    """The decoder's input from the stored tokens, and what it is placed and masked by."""
    embeds = ref.whole(ref.tensor("vision/projected"), "in/input_ids")
    before, _ = ref.halves("in/input_ids")
    count = embeds.shape[1]
    yield "llm/inputs_embeds", embeds
    yield "llm/position_ids", torch.arange(count)[None]
    yield "llm/attention_mask", torch.ones(1, count, dtype=torch.bool)
    yield "llm/image_start", torch.tensor([before.shape[1]])
    yield "llm/image_tokens", torch.tensor([ref.policy.cfg.patches])
    decoder = ref.policy.language
    cos, sin = rotary(ref.tensor("llm/position_ids"), decoder.head_dim, decoder.theta)
    yield "llm/rope_cos", cos
    yield "llm/rope_sin", sin


def layers(ref: DbReference) -> Values:
    """Every decoder layer from the stored sequence; nothing is folded."""
    decoder = ref.policy.language
    states = decoder.hidden_states(ref.tensor("llm/inputs_embeds"))
    yield "llm/layer_outputs", torch.cat(states)
    yield "llm/final_normed", decoder.norm(states[-1])


def cognition(ref: DbReference) -> Values:
    """The cognition feature as deployed: the first text folded, the last layer for one position."""
    feature, _ = ref.cognition(DENSE, ref.tensor("vision/projected"))
    yield "llm/cognition_feature", feature
    yield "dit/z_cond", feature[:, None]


def dit(ref: DbReference) -> Values:
    """Noise predictions as CogACT's; where a timestep's inside is stored, that piece by piece."""
    stored = [match[1] for _, match in ref.matches(r"dit/t(\d+)/tokens_in")]
    apart = {f"dit/t{t}/{name}" for t in stored for name in APART}
    guided = {key for t in stored for key, _ in ref.matches(rf"dit/t{t}/cfg[\d.]+")}
    for key, value in modules.dit(ref):  # pyright: ignore[reportArgumentType]
        if key not in apart | guided:
            yield key, value
    for t in stored:
        yield from pieces(ref, f"dit/t{t}")


def pieces(ref: DbReference, prefix: str) -> Values:
    """Every block from the stored arrays that went into it; the guided noise from the last.

    The public generator's run of dbcogact_tiny_a fed every block with `tokens_in` instead of the
    block before it, so neither the blocks behind the first nor this timestep's guided noise are of
    the chain. What is of the chain is `cond` and `uncond` of the same timestep, and every sample.
    """
    net = ref.policy.head
    attended, fed, outputs = (ref.tensor(f"{prefix}/{name}") for name in APART)
    pairs = zip(net.blocks, outputs - attended - fed, attended, strict=True)
    made = [_block(block, x, mixed) for block, x, mixed in pairs]
    for index, name in enumerate(APART):
        yield f"{prefix}/{name}", torch.stack([piece[index] for piece in made])
    conditional, unconditional = net.decode(outputs[-1]).chunk(2)
    for key, match in ref.matches(rf"{prefix}/cfg([\d.]+)"):
        yield key, unconditional + float(match[1]) * (conditional - unconditional)


def _block(block: nn.Module, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of x, the MLP behind the stored attention, and the block's output of x."""
    assert isinstance(block, DitBlock)
    return block.attn(block.norm1(x)), block.mlp(block.norm2(x + attended)), block(x)
