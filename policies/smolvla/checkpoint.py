"""Weights of a SmolVLA checkpoint of LeRobot 0.3 and later: names and shapes, and reading them one
by one, by our names.

What no action depends on is stored all the same (`dead_names`): the language model's head, its norm
and most of the deepest layer; it is never read. Strict: a missing, unknown or wrongly shaped weight
is an error that names it. Normalisation buffers, which LeRobot kept among the weights up to 0.3,
are no weights of the network and are left to `policies.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.smolvla.config import SmolVlaConfig
from trimvla.policies.smolvla.model import SmolVla, build_meta
from trimvla.policies.smolvla.prefix import PrefixLayer
from trimvla.policies.weight_names import check_names
from trimvla.runtime.errors import CheckpointError

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
BUFFERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


# --- layout ---


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


# --- weights ---


class StoredWeights(Mapping[str, Tensor]):
    """Our weights by name, each read from its file, in its precision, when it is asked for."""

    def __init__(self, files: SafetensorsFiles, cfg: SmolVlaConfig) -> None:
        """Of checked files."""
        self._files = files
        self._shapes = {
            name: tuple(meta.shape) for name, meta in build_meta(cfg).state_dict().items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """In our shape."""
        shape = self._shapes[name]
        return self._files[theirs(name)].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        """Our names."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """How many weights there are."""
        return len(self._shapes)


def open_weights(directory: Path, cfg: SmolVlaConfig) -> StoredWeights:
    """The weights of a checkpoint, checked against a config.

    Raises:
        CheckpointError: no weights, or one that is missing, unknown or of another shape.
    """
    files = SafetensorsFiles(directory)
    shapes = stored_shapes(cfg)
    found = {name for name in files if not is_buffer(name)}
    check_names(files.place, found, shapes, dead_names(cfg))
    for name, shape in shapes.items():
        if files.shape(name) != shape:
            got = list(files.shape(name))
            raise CheckpointError(f"{files.place}: expected {list(shape)}, got {got} for '{name}'")
    return StoredWeights(files, cfg)


def is_buffer(name: str) -> bool:
    """Whether a name is one of the normalisation buffers of LeRobot up to 0.3."""
    return name.removeprefix("model.").startswith(BUFFERS)


def build(cfg: SmolVlaConfig, weights: Mapping[str, Tensor]) -> SmolVla:
    """The policy in float32, weights put in place one at a time; without a change of type they stay
    mapped.
    """
    policy = build_meta(cfg)
    shapes = {name: meta.shape for name, meta in policy.state_dict().items()}
    state = {name: weights[name].reshape(shape).to(torch.float32) for name, shape in shapes.items()}
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()
