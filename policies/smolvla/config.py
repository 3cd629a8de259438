"""Frozen configuration of a SmolVLA policy, and its preset.

SmolVLM2 (SigLIP, pixel shuffle, the first layers of a SmolLM2 decoder) with a narrower decoder
beside it, the action expert. Expert layers attend to themselves and the prefix, or to the prefix
alone, by their index. Sizes: arXiv 2506.01844, LeRobot's `smolvla`, SmolVLM2-500M. Allocates
nothing and imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from trimvla.policies.sizes.config import HALF, VitConfig
from trimvla.runtime.errors import ConfigError

MAX_STEPS = 1000
ROPE_BASE = 10000.0  # the public code's own, whatever the language model's config has
PatchPositions = Literal["identity", "shifted"]


class TextConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The decoder of images, text and state; heads and their size are the expert's too."""

    width: int
    layers: int
    """Those that are used, of however many the language model was published with."""
    heads: int
    kv_heads: int
    head_dim: int
    mlp_hidden: int
    vocab: int
    norm_eps: float = 1e-5
    rope_base: float = ROPE_BASE

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(f"expected at least 1 layer in text, got {self.layers}")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            got = f"{self.heads} and {self.kv_heads}"
            raise ConfigError(f"expected heads to be a multiple of kv_heads in text, got {got}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"expected an even head_dim in text, got {self.head_dim}")

    @property
    def kv_width(self) -> int:
        """Numbers of one position's keys."""
        return self.kv_heads * self.head_dim


class ExpertConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the action expert has of its own. Layer i reads layer i of the decoder."""

    width: int
    mlp_hidden: int
    self_attention_every: int = 2
    """Layers whose index it divides attend to the actions too, the others to the prefix alone; 0:
    all do that.
    """

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ConfigError(f"expected an even width of expert, got {self.width}")
        if self.self_attention_every < 0:
            raise ConfigError(
                f"expected self_attention_every from 0 on in expert, got "
                f"{self.self_attention_every}"
            )

    def attends_to_actions(self, layer: int) -> bool:
        """Whether the layer of this original index attends to the actions beside the prefix."""
        return self.self_attention_every > 0 and layer % self.self_attention_every == 0


class FlowConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Euler steps from t = 1 (noise) to t = 0 (actions); periods of the time embedding's
    sinusoids.
    """

    steps: int = 10
    min_period: float = 4e-3
    max_period: float = 4.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"expected flow steps from 1 to {MAX_STEPS}, got {self.steps}")
        if not 0 < self.min_period < self.max_period:
            got = f"{self.min_period} and {self.max_period}"
            raise ConfigError(f"expected 0 < min_period < max_period, got {got}")


class SmolVlaPromptConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an instruction becomes ids: its text and a newline, then `pad_id` up to a bucket; no
    BOS.
    """

    template: str = "{instruction}"
    pad_id: int = 2
    buckets: tuple[int, ...] = (24, 48)
    """Lengths of the ids, rising; the last is the longest prompt that the policy was trained with.
    """

    def __post_init__(self) -> None:
        if (
            not self.buckets
            or list(self.buckets) != sorted(set(self.buckets))
            or self.buckets[0] < 2
        ):
            raise ConfigError(
                f"expected rising buckets of at least 2 in prompt, got {self.buckets}"
            )

    @property
    def longest(self) -> int:
        """Ids of the longest prompt."""
        return self.buckets[-1]


def buckets_up_to(longest: int) -> tuple[int, ...]:
    """A prompt of half the length is what most tasks have; the text is a fifth of the sequence."""
    return (longest // 2, longest) if longest >= 32 else (longest,)


class SmolVlaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole policy."""

    family: Literal["smolvla"] = "smolvla"
    name: str
    cameras: tuple[str, ...]
    """Names, in the order in which the policy was trained with them."""
    image_size: int
    """Side of the square that every image is fitted into, in pixels."""
    vision: VitConfig
    """`image_size` there is what the table of positions was made for."""
    shuffle: int
    """Patches a side that become one visual token."""
    text: TextConfig
    expert: ExpertConfig
    flow: FlowConfig = FlowConfig()
    prompt: SmolVlaPromptConfig = SmolVlaPromptConfig()
    horizon: int = 50
    action_dim: int = 6
    padded_action_dim: int = 32
    state_dim: int = 6
    padded_state_dim: int = 32
    patch_positions: PatchPositions = "identity"
    """`shifted`: as transformers 4.55.1 to 4.57.6 work them out in float32, one row and column too
    low.
    """

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected cameras of different names, got {list(self.cameras)}")
        self.check_image_size(self.image_size)
        for name in ("action_dim", "state_dim"):
            real = getattr(self, name)
            padded = getattr(self, f"padded_{name}")
            if not 1 <= real <= padded:
                raise ConfigError(f"expected {name} from 1 to {padded}, got {real}")
        if self.horizon < 1:
            raise ConfigError(f"expected a horizon of at least 1, got {self.horizon}")

    def check_image_size(self, side: int, name: str = "image_size") -> None:
        """ConfigError where images of this side have no whole number of visual tokens a side."""
        unit = self.vision.patch_size * self.shuffle
        if self.shuffle < 1 or side < 1 or side % unit:
            patch = self.vision.patch_size
            words = f"a multiple of {unit} (patches of {patch}, {self.shuffle} a token)"
            raise ConfigError(f"expected {words} for '{name}', got {side}")

    def tokens_at(self, side: int) -> int:
        """Visual tokens of one image of this side."""
        return (side // (self.vision.patch_size * self.shuffle)) ** 2

    @property
    def tokens(self) -> int:
        """Visual tokens of one camera."""
        return self.tokens_at(self.image_size)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all cameras."""
        return len(self.cameras) * self.tokens

    @property
    def fingerprint(self) -> str:
        """Names this config in plans and calibration data."""
        encoded = msgspec.json.encode(self, order="deterministic")
        return hashlib.sha256(encoded).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` is its inverse."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SmolVlaConfig:
        """Build from the JSON form; ConfigError names the field that is wrong."""
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"policy config: {error}") from error


def siglip(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    mlp: int,
    eps: float = 1e-6,
) -> VitConfig:
    """An encoder of this family: all blocks run, pixels from -1 to 1."""
    return VitConfig(
        name="siglip",
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_hidden=mlp,
        feature_block=depth - 1,
        mean=HALF,
        std=HALF,
        norm_eps=eps,
        activation="gelu_tanh",
    )


def expert_mlp(width: int) -> int:
    """MLP width of an expert, as the public code works it out: 8/3 of the width, up to a multiple
    of 256.
    """
    return 256 * -(-(2 * 4 * width // 3) // 256)


PRESETS: dict[str, SmolVlaConfig] = {
    "smolvla-base": SmolVlaConfig(
        name="smolvla-base",
        cameras=("camera1", "camera2", "camera3"),
        image_size=512,
        vision=siglip(image_size=512, patch_size=16, width=768, depth=12, heads=12, mlp=3072),
        shuffle=4,
        text=TextConfig(
            width=960, layers=16, heads=15, kv_heads=5, head_dim=64, mlp_hidden=2560, vocab=49280
        ),
        expert=ExpertConfig(width=720, mlp_hidden=expert_mlp(720)),
    )
}
