"""Frozen configurations of pi0 and pi0.5, and their presets.

Both are PaliGemma (SigLIP, a Gemma decoder) with a narrow Gemma beside it, the action expert, that
reads the decoder's keys and values layer by layer. pi0 gives the expert the robot's state and mixes
the time into the actions; pi0.5 writes the state into the prompt and modulates every norm of the
expert by the time. Sizes: arXiv 2410.24164, openpi's `gemma_2b` and `gemma_300m`. Allocates nothing
and imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from trimvla.policies.sizes.config import HALF, VitConfig
from trimvla.runtime.errors import ConfigError

Variant = Literal["pi0", "pi05"]
MAX_STEPS = 1000


class GemmaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The decoder of images and text; depth, heads and their size are the expert's too."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_hidden: int
    vocab: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(
                f"expected heads to be a multiple of kv_heads, got {self.heads} and {self.kv_heads}"
            )
        if self.layers < 1 or self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(
                f"expected layers of at least 1 and an even head_dim, got {self.layers} and"
                f" {self.head_dim}"
            )


class ExpertConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the action expert has of its own."""

    width: int
    mlp_hidden: int


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
            raise ConfigError(
                f"expected 0 < min_period < max_period, got {self.min_period} and {self.max_period}"
            )


class Pi0PromptConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an instruction becomes ids: BOS, the template's ids, `pad_id` up to a bucket."""

    template: str
    bos_id: int = 2
    pad_id: int = 0
    buckets: tuple[int, ...]
    """Lengths of the ids; the last is the longest prompt that the policy was trained with."""

    def __post_init__(self) -> None:
        if "{instruction}" not in self.template:
            raise ConfigError(f"expected '{{instruction}}' in template, got {self.template!r}")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"expected strictly increasing buckets, got {self.buckets}")

    @property
    def longest(self) -> int:
        """Ids of the longest prompt."""
        return self.buckets[-1]


class Pi0Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole policy; `cameras` are the images that it sees at every call, in order."""

    family: Variant
    name: str
    vision: VitConfig
    language: GemmaConfig
    expert: ExpertConfig
    flow: FlowConfig = FlowConfig()
    prompt: Pi0PromptConfig
    cameras: tuple[str, ...]
    horizon: int
    action_dim: int
    """Numbers in one of the robot's actions."""
    padded_action_dim: int
    """Numbers in a row of the noise and the sample: the first `action_dim` are the action."""
    state_dim: int
    padded_state_dim: int
    image_dtype: Literal["float32", "uint8"] = "float32"
    """Of the vision stage's input: pixels from 0 to 1, or from 0 to 255."""

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected at least one camera, each once, got {list(self.cameras)}")
        for what, dim, padded in (
            ("action", self.action_dim, self.padded_action_dim),
            ("state", self.state_dim, self.padded_state_dim),
        ):
            if not 1 <= dim <= padded:
                raise ConfigError(f"expected {what}_dim from 1 to {padded}, got {dim}")
        if self.vision.feature_block != self.vision.depth - 1 or self.vision.prefix:
            raise ConfigError("expected a vision encoder that runs whole and has no class token")
        if self.expert.width % 2:
            raise ConfigError(f"expected an even width of the expert, got {self.expert.width}")

    def with_cameras(self, cameras: tuple[str, ...]) -> Pi0Config:
        """The same policy, looking through other cameras."""
        return msgspec.structs.replace(self, cameras=cameras)

    @property
    def patches(self) -> int:
        """Visual tokens of one image."""
        return self.vision.patches

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all cameras: the first positions of the prefix."""
        return len(self.cameras) * self.patches

    @property
    def prefix(self) -> int:
        """Positions of the longest prefix: every camera's tokens and the longest prompt."""
        return self.visual_tokens + self.prompt.longest

    @property
    def has_state_token(self) -> bool:
        """Whether the expert sees the state as a token; else it is text."""
        return self.family == "pi0"

    @property
    def fingerprint(self) -> str:
        """Names this config in plans: 16 hexadecimal digits of its JSON form's sha256."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` is its inverse."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pi0Config:
        """Build from the JSON form.

        Raises:
            ConfigError: an unknown, missing or wrongly typed field, named with its path.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"policy config: {error}") from error


TEMPLATES: dict[Variant, str] = {
    "pi0": "{instruction}",
    "pi05": "Task: {instruction}, State: {state};\nAction: ",
}
LONGEST: dict[Variant, int] = {"pi0": 48, "pi05": 200}
STATE_BINS = 256  # of pi0.5's prompt
SO400M_WIDTH = 1152
SO400M_HEADS = 16  # not in any file: shapes give 1152 only
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")  # openpi's slots


def buckets_up_to(longest: int) -> tuple[int, ...]:
    """Prompt lengths that are worth a shape of their own: a half and three quarters of the longest,
    and that.
    """
    return tuple(sorted({max(2, longest // 2), max(2, 3 * longest // 4), longest}))


def siglip(
    *, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp: int
) -> VitConfig:
    """A SigLIP encoder that runs whole: every block, then the final norm."""
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
        activation="gelu_tanh",
    )


def _published(family: Variant) -> Pi0Config:
    return Pi0Config(
        family=family,
        name=family,
        vision=siglip(
            image_size=224,
            patch_size=14,
            width=SO400M_WIDTH,
            depth=27,
            heads=SO400M_HEADS,
            mlp=4304,
        ),
        language=GemmaConfig(
            width=2048,
            layers=18,
            heads=8,
            kv_heads=1,
            head_dim=256,
            mlp_hidden=16384,
            vocab=257152,
        ),
        expert=ExpertConfig(width=1024, mlp_hidden=4096),
        prompt=Pi0PromptConfig(
            template=TEMPLATES[family],
            buckets=buckets_up_to(LONGEST[family]),
        ),
        cameras=CAMERAS,
        horizon=50,
        action_dim=32,
        padded_action_dim=32,
        state_dim=32,
        padded_state_dim=32,
    )


PI0 = _published("pi0")
PI05 = _published("pi05")
PRESETS: dict[Variant, dict[str, Pi0Config]] = {"pi0": {"pi0": PI0}, "pi05": {"pi05": PI05}}
