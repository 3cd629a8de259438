"""The official checkpoint's layout: every weight's name and shape, and which of ours it becomes.

Two tables, worked out from a config: the weights that reach an action, and the dead ones that the
public code stores and even runs, but throws away. Names are `<group>.<key>` with the groups of
microsoft/CogACT's checkpoints. Reads no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.vision import VitBlock
from trimvla.policies.sizes.config import PolicyConfig, VitConfig

GROUPS = ("vision_backbone", "projector", "llm_backbone", "action_model")
UNUSED_GROUPS = ("ema_diffusion",)  # an averaged copy of the action head that inference never reads

# our prefix -> official prefix; the encoders' prefixes follow from their names
PREFIXES = {
    "vision.projector.": "projector.projector.",
    "language.": "llm_backbone.llm.model.",
    "head.": "action_model.net.",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One weight of the official file and where it goes."""

    target: str
    shape: Shape


def build_meta(cfg: PolicyConfig) -> CogAct:
    """Build the policy without allocating any weight."""
    with torch.device("meta"):
        return CogAct(cfg)


def live_weights(cfg: PolicyConfig) -> dict[str, Weight]:
    """Official name -> our name and the official shape, for every weight that reaches an action."""
    prefixes = {
        f"vision.encoders.{i}.": f"vision_backbone.{vit.name}." for i, vit in enumerate(cfg.vision)
    } | PREFIXES
    patches = {
        f"vision.encoders.{i}.patch_embed.proj.weight": vit for i, vit in enumerate(cfg.vision)
    }
    layout = {}
    for name, tensor in build_meta(cfg).state_dict().items():
        shape = _convolution(patches[name]) if name in patches else tuple(tensor.shape)
        layout[_rename(name, prefixes)] = Weight(name, shape)
    return layout


def dead_weights(cfg: PolicyConfig) -> dict[str, Shape]:
    """Official name -> shape of the weights that are stored and never reach an action."""
    head = cfg.head
    language = cfg.language
    shapes: dict[str, Shape] = {
        "llm_backbone.llm.lm_head.weight": (language.vocab, language.width),
        "action_model.net.history_embedder.linear.weight": (head.width, head.action_dim),
        "action_model.net.history_embedder.linear.bias": (head.width,),
    }
    for vit in cfg.vision:
        shapes |= {
            f"vision_backbone.{vit.name}.{key}": shape for key, shape in _dead_in_vit(vit).items()
        }
    return shapes


def official_parameters(cfg: PolicyConfig) -> int:
    """Parameters of the official checkpoint, dead ones included: the count that papers quote."""
    shapes = [weight.shape for weight in live_weights(cfg).values()] + list(
        dead_weights(cfg).values()
    )
    return sum(math.prod(shape) for shape in shapes)


def _rename(name: str, prefixes: dict[str, str]) -> str:
    ours = next(prefix for prefix in (*prefixes, "") if name.startswith(prefix))
    return prefixes.get(ours, "") + name[len(ours) :]


def _convolution(vit: VitConfig) -> Shape:
    """Official patch embeddings are strided convolutions."""
    return (vit.width, 3, vit.patch_size, vit.patch_size)


def _dead_in_vit(vit: VitConfig) -> dict[str, Shape]:
    """What comes after the feature block: later blocks, the final norm, SigLIP's attention pool."""
    with torch.device("meta"):
        block = {key: tuple(tensor.shape) for key, tensor in VitBlock(vit).state_dict().items()}
    later = range(vit.feature_block + 1, vit.depth)
    shapes: dict[str, Shape] = {
        f"blocks.{i}.{key}": shape for i in later for key, shape in block.items()
    }
    shapes |= {"norm.weight": (vit.width,), "norm.bias": (vit.width,)}
    if vit.attention_pool:
        shapes |= {
            f"attn_pool.{key}": shape
            for key, shape in _attention_pool(vit.width, vit.mlp_hidden).items()
        }
    return shapes


def _attention_pool(width: int, hidden: int) -> dict[str, Shape]:
    linears = {
        "q": (width, width),
        "kv": (2 * width, width),
        "proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    shapes: dict[str, Shape] = {
        "latent": (1, 1, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for name, (fan_out, fan_in) in linears.items():
        shapes |= {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}
    return shapes
