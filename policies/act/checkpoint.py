"""Weights of an ACT checkpoint of LeRobot: names and shapes, and reading them one by one, by our
names.

One of ours may be made of several of theirs: a convolution and the frozen batch norm behind it, a
third of an attention's stacked matrix, what the decoder's first self-attention gives for rows of
zeros. What no action depends on is stored all the same (`dead_names`), above all the variational
encoder of the training; it is never read. Strict: a missing, unknown or wrongly shaped weight is an
error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trimvla.policies.act.backbone_sizes import conv_sizes
from trimvla.policies.act.config import ActConfig
from trimvla.policies.act.model import Act, build_meta
from trimvla.policies.safetensors_files import SafetensorsFiles
from trimvla.policies.weight_names import check_names
from trimvla.runtime.errors import CheckpointError

MODEL = "model."
BACKBONE = f"{MODEL}backbone."
NORM_EPS = 1e-5  # of torchvision's frozen batch norm
NORM = ("weight", "bias", "running_mean", "running_var")
PARTS = ("q", "k", "v")  # of a stacked projection, in its order
BUFFERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """How one of our weights is made of stored ones."""

    stored: Mapping[str, Shape]
    """Name in the checkpoint -> its shape there, in the order of `make`'s parameters."""
    make: Callable[..., Tensor]


# --- layout ---


def recipes(cfg: ActConfig) -> dict[str, Recipe]:
    """Our name -> how it is made, for every weight that reaches an action."""
    made = {**_backbone(cfg), **_ends(cfg)}
    for index in range(cfg.encoder_layers):
        place = f"encoder.layers.{index}."
        made |= _attention(f"{place}attention.", f"{MODEL}{place}self_attn.", cfg)
        made |= _rest(place, ("norm1", "norm2"), cfg)
    for index in range(cfg.decoder_layers):
        place = f"decoder.layers.{index}."
        made |= _attention(f"{place}cross.", f"{MODEL}{place}multihead_attn.", cfg)
        if index:
            made |= _attention(f"{place}attention.", f"{MODEL}{place}self_attn.", cfg)
        norms = ("norm1", "norm2", "norm3") if index else ("norm2", "norm3")
        made |= _rest(place, norms, cfg)
    made["decoder.layers.0.start"] = _start(cfg)
    return made


def layout(cfg: ActConfig) -> tuple[dict[str, str], frozenset[str]]:
    """See `Family.layout`; a stored weight that several of ours are made of is under one of
    them.
    """
    found = {stored: ours for ours, recipe in recipes(cfg).items() for stored in recipe.stored}
    return found, dead_names(cfg)


def stored_shapes(cfg: ActConfig) -> dict[str, Shape]:
    """Name in the checkpoint -> shape there, for every weight that reaches an action."""
    return {
        name: shape for recipe in recipes(cfg).values() for name, shape in recipe.stored.items()
    }


def dead_names(cfg: ActConfig) -> frozenset[str]:
    """Names that a checkpoint may hold and that no action depends on: the training's encoder, what
    the latent of zeros is multiplied with, counters of batch norms.
    """
    found = {f"{MODEL}encoder_latent_input_proj.weight"}
    found |= {f"{_norm_of(conv.name)}num_batches_tracked" for conv in conv_sizes(cfg)}
    first = f"{MODEL}decoder.layers.0."
    # zeros have no direction, and a norm leaves nothing of them but its bias
    found.add(f"{first}norm1.weight" if cfg.pre_norm else f"{first}self_attn.in_proj_weight")
    if not cfg.vae_layers:
        return frozenset(found)
    vae = f"{MODEL}vae_encoder"
    for index in range(cfg.vae_layers):
        place = f"{vae}.layers.{index}."
        parts = ("self_attn.in_proj_", "self_attn.out_proj.", "linear1.", "linear2.")
        parts = (*parts, "norm1.", "norm2.")
        found |= {f"{place}{part}{leaf}" for part in parts for leaf in ("weight", "bias")}
    projections = ("robot_state_input", "action_input", "latent_output")
    found |= {f"{vae}_{p}_proj.{leaf}" for p in projections for leaf in ("weight", "bias")}
    found |= {f"{vae}.norm.weight", f"{vae}.norm.bias"}
    return frozenset({*found, f"{vae}_cls_embed.weight", f"{vae}_pos_enc"})


def _backbone(cfg: ActConfig) -> dict[str, Recipe]:
    """Every convolution with the norm behind it."""
    made = {}
    for conv in conv_sizes(cfg):
        norm = {f"{_norm_of(conv.name)}{leaf}": (conv.outputs,) for leaf in NORM}
        shape = (conv.outputs, conv.inputs, conv.kernel, conv.kernel)
        weight = {f"{_conv_of(conv.name)}weight": shape}
        ours = f"vision.backbone.{conv.name}."
        made[f"{ours}weight"] = Recipe({**weight, **norm}, _folded_weight)
        made[f"{ours}bias"] = Recipe(norm, _folded_bias)
    return made


def _conv_of(name: str) -> str:
    suffix = ".0." if name.endswith("downsample") else "."
    return f"{BACKBONE}{name}{suffix}"


def _norm_of(name: str) -> str:
    if name.endswith("downsample"):
        return f"{BACKBONE}{name}.1."
    place, _, conv = name.rpartition("conv")
    return f"{BACKBONE}{place}bn{conv}."


def _folded_weight(weight: Tensor, scale: Tensor, _: Tensor, __: Tensor, var: Tensor) -> Tensor:
    factor = scale.double() * (var.double() + NORM_EPS).rsqrt()
    return (weight.double() * factor[:, None, None, None]).float()


def _folded_bias(scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    factor = scale.double() * (var.double() + NORM_EPS).rsqrt()
    return (bias.double() - mean.double() * factor).float()


def _same(stored: str, *shape: int) -> Recipe:
    return Recipe({stored: shape}, _as_it_is)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _linear(ours: str, stored: str, inputs: int, outputs: int) -> dict[str, Recipe]:
    return {
        f"{ours}weight": _same(f"{stored}weight", outputs, inputs),
        f"{ours}bias": _same(f"{stored}bias", outputs),
    }


def _norm(ours: str, stored: str, width: int) -> dict[str, Recipe]:
    return {f"{ours}{leaf}": _same(f"{stored}{leaf}", width) for leaf in ("weight", "bias")}


def _ends(cfg: ActConfig) -> dict[str, Recipe]:
    """Everything but layers and backbone."""
    width = cfg.width
    projection = f"{MODEL}encoder_img_feat_input_proj."
    singles = f"{MODEL}encoder_1d_feature_pos_embed.weight"
    made = {
        "vision.projection.weight": _same(f"{projection}weight", width, cfg.features, 1, 1),
        "vision.projection.bias": _same(f"{projection}bias", width),
        "encoder.latent": _same(f"{MODEL}encoder_latent_input_proj.bias", width),
        "encoder.single_positions": _same(singles, cfg.single_tokens, width),
        "decoder.positions": _same(f"{MODEL}decoder_pos_embed.weight", cfg.horizon, width),
        **_norm("decoder.norm.", f"{MODEL}decoder.norm.", width),
        **_linear("decoder.head.", f"{MODEL}action_head.", width, cfg.action_dim),
    }
    for ours, theirs, dim in (
        ("state", "robot_state", cfg.state_dim),
        ("environment", "env_state", cfg.environment_dim),
    ):
        if dim:
            made |= _linear(f"encoder.{ours}.", f"{MODEL}encoder_{theirs}_input_proj.", dim, width)
    if cfg.pre_norm:
        made |= _norm("encoder.norm.", f"{MODEL}encoder.norm.", width)
    return made


def _attention(ours: str, stored: str, cfg: ActConfig) -> dict[str, Recipe]:
    width = cfg.width
    made = _linear(f"{ours}out.", f"{stored}out_proj.", width, width)
    for index, part in enumerate(PARTS):
        weight = {f"{stored}in_proj_weight": (3 * width, width)}
        bias = {f"{stored}in_proj_bias": (3 * width,)}
        made[f"{ours}{part}.weight"] = Recipe(weight, _third(index))
        made[f"{ours}{part}.bias"] = Recipe(bias, _third(index))
    return made


def _third(index: int) -> Callable[[Tensor], Tensor]:
    def taken(stacked: Tensor) -> Tensor:
        return stacked.chunk(len(PARTS))[index]

    return taken


def _rest(place: str, norms: tuple[str, ...], cfg: ActConfig) -> dict[str, Recipe]:
    """A layer's MLP and norms."""
    stored = f"{MODEL}{place}"
    made = {
        **_linear(f"{place}mlp.fc1.", f"{stored}linear1.", cfg.width, cfg.mlp_hidden),
        **_linear(f"{place}mlp.fc2.", f"{stored}linear2.", cfg.mlp_hidden, cfg.width),
    }
    for name in norms:
        made |= _norm(f"{place}{name}.", f"{stored}{name}.", cfg.width)
    return made


def _start(cfg: ActConfig) -> Recipe:
    """What the decoder's first self-attention gives: its input is zero in every row, so whatever
    is looked at has the same value.
    """
    first = f"{MODEL}decoder.layers.0."
    attention = f"{first}self_attn."
    width = cfg.width
    weights: dict[str, Shape] = {
        f"{attention}in_proj_bias": (3 * width,),
        f"{attention}out_proj.weight": (width, width),
        f"{attention}out_proj.bias": (width,),
        f"{first}norm1.bias": (width,),
    }
    if cfg.pre_norm:
        return Recipe({**weights, f"{attention}in_proj_weight": (3 * width, width)}, _start_before)
    return Recipe({**weights, f"{first}norm1.weight": (width,)}, _start_behind)


def _start_behind(
    bias: Tensor, out: Tensor, out_bias: Tensor, norm_bias: Tensor, norm: Tensor
) -> Tensor:
    """With the norm behind it."""
    value = F.linear(bias.chunk(3)[2].float(), out.float(), out_bias.float())
    return F.layer_norm(value, value.shape, norm.float(), norm_bias.float())


def _start_before(
    bias: Tensor, out: Tensor, out_bias: Tensor, norm_bias: Tensor, stacked: Tensor
) -> Tensor:
    """With the norm in front: of zeros it leaves its bias."""
    value = F.linear(norm_bias.float(), stacked.chunk(3)[2].float(), bias.chunk(3)[2].float())
    return F.linear(value, out.float(), out_bias.float())


# --- weights ---


class StoredWeights(Mapping[str, Tensor]):
    """Our weights by name, each made of its file's when it is asked for."""

    def __init__(self, files: SafetensorsFiles, cfg: ActConfig) -> None:
        """Of checked files."""
        self._files = files
        self._recipes = recipes(cfg)

    def __getitem__(self, name: str) -> Tensor:
        """In our shape."""
        recipe = self._recipes[name]
        return recipe.make(*(self._files[stored] for stored in recipe.stored))

    def __iter__(self) -> Iterator[str]:
        """Our names."""
        return iter(self._recipes)

    def __len__(self) -> int:
        """How many weights there are."""
        return len(self._recipes)


def open_weights(directory: Path, cfg: ActConfig) -> StoredWeights:
    """The weights of a checkpoint, checked against a config.

    Raises:
        CheckpointError: no weights, or one that is missing, unknown or of another shape.
    """
    files = SafetensorsFiles(directory)
    shapes = stored_shapes(cfg)
    found = {name for name in files if not name.removeprefix(MODEL).startswith(BUFFERS)}
    check_names(files.place, found, shapes, dead_names(cfg))
    for name, shape in shapes.items():
        if files.shape(name) != shape:
            got = list(files.shape(name))
            raise CheckpointError(f"{files.place}: expected {list(shape)}, got {got} for '{name}'")
    return StoredWeights(files, cfg)


def build(cfg: ActConfig, weights: Mapping[str, Tensor]) -> Act:
    """The policy in float32, weights put in place one at a time."""
    policy = build_meta(cfg)
    state = {name: weights[name].to(torch.float32) for name in policy.state_dict()}
    policy.load_state_dict(state, strict=True, assign=True)
    return policy.eval()
