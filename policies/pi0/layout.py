"""Names and shapes of a pi0 or pi0.5 checkpoint, and what of it becomes which of our weights.

LeRobot's files and openpi's PyTorch ones hold the same names, LeRobot's with `model.` in front. Not
stored as such: our norms of Gemma hold 1 + weight, and pi0's first matrix over [actions, time] is
two of ours. What no action depends on is named in `dead_names`. Reads no file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from trimvla.policies.pi0.config import Pi0Config
from trimvla.policies.pi0.model import Pi0

PALIGEMMA = "paligemma_with_expert.paligemma."
DECODER = f"{PALIGEMMA}model.language_model."
TOWER = f"{PALIGEMMA}model.vision_tower.vision_model."
EXPERT = "paligemma_with_expert.gemma_expert."
TABLE = f"{DECODER}embed_tokens.weight"
HEAD = f"{PALIGEMMA}lm_head.weight"  # tied to the table: files hold one of the two, or both
MLP_PARTS = ("gate_proj", "up_proj", "down_proj")

# our prefix -> theirs; the first that fits
PREFIXES = (
    ("vision.encoder.patch_embedding.proj.", f"{TOWER}embeddings.patch_embedding."),
    ("vision.encoder.position_embedding.", f"{TOWER}embeddings.position_embedding."),
    ("vision.encoder.layers.", f"{TOWER}encoder.layers."),
    ("vision.encoder.post_layernorm.", f"{TOWER}post_layernorm."),
    ("vision.projector.", f"{PALIGEMMA}model.multi_modal_projector.linear."),
    ("language.", DECODER),
    ("expert.layers.", f"{EXPERT}model.layers."),
    ("expert.norm.", f"{EXPERT}model.norm."),
    ("expert.", ""),
)
RMS_NORM = re.compile(
    r"(?:language\..*|expert\.layers\.\d+\..*|expert\.)(?:layernorm|norm)\.weight"
)


@dataclass(frozen=True)
class Source:
    """The stored tensor that a weight of ours is made from."""

    name: str
    """In the file, without `model.`."""
    columns: tuple[int, int] | None = None
    """The part of its columns that is ours; all where it is none."""
    offset: float = 0.0
    """Added to every number."""

    @property
    def label(self) -> str:
        """The name, with the columns in NumPy's notation where they are not all."""
        if self.columns is None:
            return self.name
        first, end = self.columns
        return f"{self.name}[:, {first}:{end}]"

    def of(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Our weight, of our shape; a view of the stored tensor where nothing is added."""
        part = stored if self.columns is None else stored[:, slice(*self.columns)]
        made = part.reshape(shape)
        return made if not self.offset else made.float() + self.offset


def build_meta(cfg: Pi0Config) -> Pi0:
    """Build the policy without allocating any weight."""
    with torch.device("meta"):
        return Pi0(cfg)


def sources(cfg: Pi0Config) -> dict[str, Source]:
    """Our name -> where it comes from, for every weight that reaches an action."""
    return {name: _source(name, cfg) for name in build_meta(cfg).state_dict()}


def _source(name: str, cfg: Pi0Config) -> Source:
    width = cfg.expert.width
    if cfg.has_state_token:
        if name == "expert.action_mix.weight":
            return Source("action_time_mlp_in.weight", columns=(0, width))
        if name == "expert.time_mlp_in.weight":
            return Source("action_time_mlp_in.weight", columns=(width, 2 * width))
        name = name.replace("expert.time_mlp_", "expert.action_time_mlp_")
    stored = name.replace("language.tail.", f"language.layers.{cfg.language.layers - 1}.")
    ours, theirs = next(pair for pair in PREFIXES if stored.startswith(pair[0]))
    return Source(theirs + stored.removeprefix(ours), offset=float(bool(RMS_NORM.fullmatch(name))))


def stored_shapes(cfg: Pi0Config) -> dict[str, tuple[int, ...]]:
    """Name in the file -> shape, of everything that is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    patch = cfg.vision.patch_size
    width = cfg.expert.width
    ours = {name: tuple(meta.shape) for name, meta in build_meta(cfg).state_dict().items()}
    for name, source in sources(cfg).items():
        shape = ours[name]
        if source.columns is not None:
            shape = (shape[0], 2 * width)
        elif name == "vision.encoder.patch_embedding.proj.weight":
            shape = (cfg.vision.width, 3, patch, patch)
        shapes[source.name] = shape
    return shapes


def dead_names(cfg: Pi0Config) -> frozenset[str]:
    """Names that a file may hold, without `model.`, and that no action depends on."""
    deepest = f"{DECODER}layers.{cfg.language.layers - 1}."
    dead = {f"{deepest}self_attn.{part}_proj.weight" for part in ("q", "o")}
    dead |= {f"{deepest}mlp.{part}.weight" for part in MLP_PARTS}
    dead |= {f"{deepest}post_attention_layernorm.weight", f"{DECODER}norm.weight"}
    return frozenset(dead | {HEAD, f"{EXPERT}lm_head.weight", f"{EXPERT}model.embed_tokens.weight"})


def layout(cfg: Pi0Config) -> tuple[dict[str, str], frozenset[str]]:
    """See `Family.layout`; names as openpi has them, with the columns where a weight is a part."""
    return {source.label: name for name, source in sources(cfg).items()}, dead_names(cfg)


def official_parameters(cfg: Pi0Config) -> int:
    """Parameters of the published model: the tied table once, with the dead weights of every
    file.
    """
    language = cfg.language
    expert = cfg.expert
    live = sum(math.prod(shape) for shape in stored_shapes(cfg).values())
    deepest = 2 * language.width * language.heads * language.head_dim
    deepest += 3 * language.width * language.mlp_hidden + 2 * language.width
    return live + deepest + language.vocab * expert.width
