"""The checkpoint's layout: every weight's name and shape, and which of ours it becomes.

Two tables, worked out from a config: the weights that reach an action, and the dead ones that
training stores and inference never uses. Names are those of Dexbotic's `CogACTForCausalLM`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimvla.policies.dbcogact.config import DbCogActConfig
from trimvla.policies.dbcogact.model import DbCogAct
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.weight_names import check_names
from trimvla.runtime.errors import CheckpointError

CLIP = "model.mm_vision_tower.vision_tower.vision_model."
PREFIXES = {
    "vision.encoder.patch_embedding.proj.": f"{CLIP}embeddings.patch_embedding.",
    "vision.encoder.class_embedding": f"{CLIP}embeddings.class_embedding",
    "vision.encoder.position_embedding.": f"{CLIP}embeddings.position_embedding.",
    "vision.encoder.pre_layrnorm.": f"{CLIP}pre_layrnorm.",
    "vision.encoder.layers.": f"{CLIP}encoder.layers.",
    "vision.projector.": "model.mm_projector.",
    "language.": "model.llm.",
    "head.": "model.action_head.net.",
}
"""Our prefix -> the checkpoint's."""
CONVOLUTION = "vision.encoder.patch_embedding.proj.weight"
DEAD = ("lm_head.weight",)
DEAD_PREFIXES = (f"{CLIP}post_layernorm.", "model.action_head.net.history_embedder.")


def build_meta(cfg: DbCogActConfig) -> DbCogAct:
    """The policy without any weight allocated."""
    with torch.device("meta"):
        return DbCogAct(cfg)


def live_weights(cfg: DbCogActConfig) -> dict[str, str]:
    """Name in the checkpoint -> our name, for every weight that reaches an action."""
    return {_theirs(name): name for name in build_meta(cfg).state_dict()}


def dead_prefixes(cfg: DbCogActConfig) -> tuple[str, ...]:
    """How names of weights begin that are stored and never reach an action."""
    later = range(cfg.vision.feature_block + 1, cfg.vision.depth)
    layers = (f"{CLIP}encoder.layers.{i}." for i in later)
    return (*DEAD, *DEAD_PREFIXES, *layers)


def dead_weights(cfg: DbCogActConfig) -> frozenset[str]:
    """Names of the weights that are stored and never reach an action."""
    live = live_weights(cfg)
    first = f"{CLIP}encoder.layers.0."
    leaves = [name.removeprefix(first) for name in live if name.startswith(first)]
    later = range(cfg.vision.feature_block + 1, cfg.vision.depth)
    norms = [f"{CLIP}post_layernorm.{leaf}" for leaf in ("weight", "bias")]
    history = "model.action_head.net.history_embedder.linear"
    names = [*DEAD, *norms, *(f"{history}.{leaf}" for leaf in ("weight", "bias"))]
    return frozenset(names) | {f"{CLIP}encoder.layers.{i}.{leaf}" for i in later for leaf in leaves}


def official_shapes(cfg: DbCogActConfig) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint -> shape there, for every weight that reaches an action."""
    size = cfg.vision.patch_size
    shapes = {}
    for name, tensor in build_meta(cfg).state_dict().items():
        convolution = (cfg.vision.width, 3, size, size)
        shapes[_theirs(name)] = convolution if name == CONVOLUTION else tuple(tensor.shape)
    return shapes


def check_layout(files: SafetensorsFiles, cfg: DbCogActConfig) -> None:
    """Whether the files hold every weight that is needed, in its shape, and nothing unknown.

    Raises:
        CheckpointError: names what is missing, unknown or of another shape.
    """
    shapes = official_shapes(cfg)
    dead = dead_weights(cfg)
    check_names(files.place, files, shapes, dead)
    for name, shape in shapes.items():
        if files.shape(name) != shape:
            raise CheckpointError(
                f"{files.place}: expected {list(shape)}, got {list(files.shape(name))} for '{name}'"
            )


def put(policy: nn.Module, name: str, weight: Tensor) -> None:
    """Put a weight in the place of a parameter, in float32 and in the parameter's shape."""
    path, _, leaf = name.rpartition(".")
    owner = policy.get_submodule(path)
    shape = owner.get_parameter(leaf).shape
    value = nn.Parameter(weight.reshape(shape).to(torch.float32), requires_grad=False)
    setattr(owner, leaf, value)


def _theirs(name: str) -> str:
    ours = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[ours] + name[len(ours) :]
