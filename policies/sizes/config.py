"""Frozen configurations of a policy of the CogACT shape, and the presets.

Knows every size that a module needs; allocates nothing and imports no torch. Sizes of the presets:
microsoft/CogACT, arXiv 2411.19650; the `tabletop` preset is this project's own small policy of the
same shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from trimvla.runtime.errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]


class VitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One vision transformer.

    `feature_block` is the index of the last block that runs: its output is the feature.
    """

    name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_hidden: int
    feature_block: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_token: bool = False
    registers: int = 0
    layer_scale: bool = False
    attention_pool: bool = False
    norm_eps: float = 1e-6
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        _divides("image_size", self.image_size, "patch_size", self.patch_size)
        _divides("width", self.width, "heads", self.heads)
        if not 0 <= self.feature_block < self.depth:
            raise ConfigError(
                f"expected 0 <= feature_block < depth = {self.depth}, got {self.feature_block}"
            )

    @property
    def patches(self) -> int:
        """Visual tokens per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix(self) -> int:
        """Class and register tokens in front of the patches."""
        return int(self.class_token) + self.registers


class ProjectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hidden widths between the concatenated vision features and the language width; GELU after
    each.
    """

    hidden: tuple[int, ...]


class LanguageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A LLaMA decoder without its LM head."""

    width: int
    layers: int
    heads: int
    mlp_hidden: int
    vocab: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        _divides("width", self.width, "heads", self.heads)

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves as many heads of queries."""
        return self.heads

    @property
    def qkv_bias(self) -> bool:
        """Whether the maps to queries, keys and values have biases."""
        return False


class HeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The diffusion transformer: `horizon` noisy actions of `action_dim`, plus one condition
    token.
    """

    depth: int
    width: int
    heads: int
    mlp_ratio: float = 4.0
    horizon: int = 16
    action_dim: int = 7
    frequency: int = 256

    def __post_init__(self) -> None:
        _divides("width", self.width, "heads", self.heads)


class DiffusionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Training steps of the schedule, DDIM steps of the sampler, classifier-free guidance scale (<=
    1: none).
    """

    train_steps: int = 100
    inference_steps: int = 10
    guidance: float = 1.5


class PromptConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an instruction becomes ids: BOS, the template's ids, `empty_id`, `eos_id`, then `pad_id`
    up to a bucket.
    """

    template: str = "In: What action should the robot take to {instruction}?\nOut:"
    bos_id: int = 1
    eos_id: int = 2
    empty_id: int = 29871
    pad_id: int = 32000
    buckets: tuple[int, ...] = (32, 64)

    def __post_init__(self) -> None:
        if "{instruction}" not in self.template:
            raise ConfigError(f"expected '{{instruction}}' in template, got {self.template!r}")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"expected strictly increasing buckets, got {self.buckets}")


class PolicyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole policy. `visual_position` adds a learned position to every projected visual token."""

    name: str
    vision: tuple[VitConfig, ...]
    projector: ProjectorConfig
    language: LanguageConfig
    head: HeadConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    prompt: PromptConfig = PromptConfig()
    visual_position: bool = False

    def __post_init__(self) -> None:
        if not self.vision:
            raise ConfigError("expected at least one encoder in vision, got none")
        grids = {(vit.image_size, vit.patches) for vit in self.vision}
        if len(grids) > 1:
            raise ConfigError(
                f"expected one image size and patch count for all encoders, got {sorted(grids)}"
            )

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.vision[0].image_size

    @property
    def patches(self) -> int:
        """Visual tokens in the sequence."""
        return self.vision[0].patches

    @property
    def vision_width(self) -> int:
        """Channels of the concatenated vision features."""
        return sum(vit.width for vit in self.vision)

    @property
    def fingerprint(self) -> str:
        """Names this config in plans and calibration data: 16 hexadecimal digits of its JSON form's
        sha256.
        """
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` is its inverse."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Build from the JSON form.

        Raises:
            ConfigError: an unknown, missing or wrongly typed field, named with its path.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"policy config: {error}") from error


def _divides(name: str, value: int, part: str, count: int) -> None:
    if count < 1 or value % count:
        raise ConfigError(f"expected {name} to be a multiple of {part}, got {value} and {count}")


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

DINOV2_LARGE = VitConfig(
    name="dino_featurizer",
    image_size=224,
    patch_size=14,
    width=1024,
    depth=24,
    heads=16,
    mlp_hidden=4096,
    feature_block=22,
    class_token=True,
    registers=4,
    layer_scale=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
SIGLIP_SO400M = VitConfig(
    name="siglip_featurizer",
    image_size=224,
    patch_size=14,
    width=1152,
    depth=27,
    heads=16,
    mlp_hidden=4304,
    feature_block=25,
    attention_pool=True,
    mean=HALF,
    std=HALF,
)
LLAMA2_7B = LanguageConfig(width=4096, layers=32, heads=32, mlp_hidden=11008, vocab=32064)

DIT_SIZES = {
    "small": HeadConfig(depth=6, width=384, heads=4),
    "base": HeadConfig(depth=12, width=768, heads=12),
    "large": HeadConfig(depth=24, width=1024, heads=16),
}

TABLETOP = PolicyConfig(
    name="tabletop",
    vision=(
        VitConfig(
            name="vit",
            image_size=128,
            patch_size=8,
            width=192,
            depth=4,
            heads=3,
            mlp_hidden=768,
            feature_block=3,
            mean=HALF,
            std=HALF,
        ),
    ),
    projector=ProjectorConfig(hidden=(192,)),
    language=LanguageConfig(width=192, layers=16, heads=3, mlp_hidden=512, vocab=512),
    head=HeadConfig(depth=6, width=192, heads=3),
    prompt=PromptConfig(bos_id=1, eos_id=2, empty_id=3, pad_id=0, buckets=(24, 32, 64)),
    visual_position=True,
)

# SimplerEnv's WidowX tasks: the tabletop's sizes
WIDOWX = msgspec.structs.replace(TABLETOP, name="widowx")

# the same on a window of the image, at more than twice the resolution and for the same cost
WIDOWX_WINDOW = msgspec.structs.replace(
    TABLETOP,
    name="widowx-window",
    vision=(msgspec.structs.replace(TABLETOP.vision[0], image_size=224, patch_size=14),),
)

PRESETS: dict[str, PolicyConfig] = {
    **{
        f"cogact-{size}": PolicyConfig(
            name=f"cogact-{size}",
            vision=(DINOV2_LARGE, SIGLIP_SO400M),
            projector=ProjectorConfig(hidden=(8704, 4096)),
            language=LLAMA2_7B,
            head=head,
        )
        for size, head in DIT_SIZES.items()
    },
    "tabletop": TABLETOP,
    "widowx": WIDOWX,
    "widowx-window": WIDOWX_WINDOW,
}


def find_preset(name: str) -> PolicyConfig:
    """The config; ConfigError lists the names."""
    if name not in PRESETS:
        raise ConfigError(f"expected --preset as one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
