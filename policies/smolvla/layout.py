"""LeRobot's layout of a SmolVLA checkpoint: every weight's name and shape, and which of ours it
becomes.

Names are those of LeRobot 0.3 and later. What no action depends on is stored all the same, and
named in `dead_names`: the language model's head, its norm, and most of the deepest layer. Reads no
file.
"""

from __future__ import annotations

from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.model import build_meta
from trimvla.policies.smolvla.prefix import PrefixLayer

VLM = "model.vlm_with_expert.vlm."
VISION = f"{VLM}model.vision_model."
CONNECTOR = f"{VLM}model.connector.modality_projection.proj."
TEXT = f"{VLM}model.text_model."
EXPERT = "model.vlm_with_expert.lm_expert."
HEAD = f"{VLM}lm_head.weight"
EXPERT_TABLE = f"{EXPERT}embed_tokens.weight"
CONVOLUTION = "vision.encoder.patch_embedding.proj.weight"

# our prefix -> theirs; the first that fits
PREFIXES = (
    ("vision.encoder.patch_embedding.proj.", f"{VISION}embeddings.patch_embedding."),
    ("vision.encoder.position_embedding.", f"{VISION}embeddings.position_embedding."),
    ("vision.encoder.layers.", f"{VISION}encoder.layers."),
    ("vision.encoder.post_layernorm.", f"{VISION}post_layernorm."),
    ("vision.connector.", CONNECTOR),
    ("prefix.state_proj.", "model.state_proj."),
    ("prefix.", TEXT),
    ("expert.layers.", f"{EXPERT}layers."),
    ("expert.norm.", f"{EXPERT}norm."),
    ("expert.", "model."),
)


def theirs(name: str) -> str:
    """Our name -> the checkpoint's."""
    ours, stored = next(pair for pair in PREFIXES if name.startswith(pair[0]))
    return stored + name.removeprefix(ours)


def live_names(cfg: SmolVlaConfig) -> dict[str, str]:
    """Name in the checkpoint -> our name, for every weight that reaches an action."""
    return {theirs(name): name for name in build_meta(cfg).state_dict()}


def stored_shapes(cfg: SmolVlaConfig) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint -> shape there, for every weight that reaches an action."""
    size = cfg.vision.patch_size
    convolution = (cfg.vision.width, 3, size, size)
    weights = build_meta(cfg).state_dict().items()
    return {
        theirs(name): convolution if name == CONVOLUTION else tuple(weight.shape)
        for name, weight in weights
    }


def dead_names(cfg: SmolVlaConfig) -> frozenset[str]:
    """Names that a checkpoint may hold and that no action depends on."""
    return frozenset({*deepest_names(cfg), HEAD, EXPERT_TABLE})


def deepest_names(cfg: SmolVlaConfig) -> dict[str, str]:
    """What would make the deepest layer a whole one: name in the checkpoint -> name in a
    `PrefixLayer`, or "norm".
    """
    deepest = f"{TEXT}layers.{cfg.text.layers - 1}."
    live = live_names(cfg)
    names = {f"{deepest}{leaf}": leaf for leaf in PrefixLayer.leaves()}
    return {name: leaf for name, leaf in names.items() if name not in live} | {
        f"{TEXT}norm.weight": "norm"
    }


def layout(cfg: SmolVlaConfig) -> tuple[dict[str, str], frozenset[str]]:
    """See `Family.layout`."""
    return live_names(cfg), dead_names(cfg)
