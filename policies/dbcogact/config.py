"""Frozen configurations of DB-CogACT, Dexbotic's CogACT: one CLIP encoder, Qwen2, a diffusion head.

Knows every size that a module needs, and the published sizes of what a checkpoint names by hub
strings; reads no file and imports no torch. Sizes: dexbotic 932192c and the config.json of its
checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from trimvla.policies.sizes.config import (
    DIT_SIZES,
    DiffusionConfig,
    HeadConfig,
    LanguageConfig,
    ProjectorConfig,
    VitConfig,
)
from trimvla.runtime.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD_RGB = (122, 116, 104)
"""What an image is padded with to a square: CLIP's mean colour."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
BEFORE_IMAGE = f"{SYSTEM}USER: "
AFTER_IMAGE = "\nWhat action should the robot take to {instruction}? ASSISTANT:  <|endoftext|>"


class QwenConfig(LanguageConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Qwen2 decoder without its LM head: heads share keys and values, q, k and v have biases."""

    key_value_heads: int
    norm_eps: float = 1e-6
    rope_theta: float = 1e6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_value_heads < 1 or self.heads % self.key_value_heads:
            raise ConfigError(
                f"expected heads to be a multiple of key_value_heads, got {self.heads} and "
                f"{self.key_value_heads}"
            )

    @property
    def kv_heads(self) -> int:
        """See `LanguageConfig.kv_heads`."""
        return self.key_value_heads

    @property
    def qkv_bias(self) -> bool:
        """See `LanguageConfig.qkv_bias`."""
        return True


class ChatPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an instruction becomes ids: text before the image, the image, text behind it.

    Both halves are tokenised apart, without BOS; the instruction is neither lowercased nor
    stripped. `before_ids` are the first half's ids: it never changes.
    """

    before: str = BEFORE_IMAGE
    after: str = AFTER_IMAGE
    before_ids: tuple[int, ...]
    end_id: int
    """Of the template's last token, whose hidden state is the condition."""
    pad_id: int
    buckets: tuple[int, ...] = (32, 48, 64, 96)
    """Lengths of the second half's ids."""

    def __post_init__(self) -> None:
        if "{instruction}" not in self.after:
            raise ConfigError(f"expected '{{instruction}}' in after, got {self.after!r}")
        if not self.before_ids:
            raise ConfigError("expected ids before the image in before_ids, got none")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            raise ConfigError(f"expected strictly increasing buckets, got {self.buckets}")


class DbCogActConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole policy."""

    family: Literal["dbcogact"] = "dbcogact"
    name: str
    vision: VitConfig
    projector: ProjectorConfig
    language: QwenConfig
    head: HeadConfig
    prompt: ChatPrompt
    diffusion: DiffusionConfig = DiffusionConfig()
    cameras: tuple[str, ...] = ("front",)
    """Images of an observation, in the order of their tokens."""

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected different names in cameras, got {list(self.cameras)}")
        ids = (*self.prompt.before_ids, self.prompt.end_id, self.prompt.pad_id)
        if not all(0 <= token < self.language.vocab for token in ids):
            raise ConfigError(f"expected the prompt's ids below vocab = {self.language.vocab}")

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.vision.image_size

    @property
    def patches(self) -> int:
        """Visual tokens in the sequence, of all cameras."""
        return len(self.cameras) * self.vision.patches

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the JSON form's sha256; see `PolicyConfig.fingerprint`."""
        encoded = msgspec.json.encode(self.to_dict(), order="deterministic")
        return hashlib.sha256(encoded).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` is its inverse."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DbCogActConfig:
        """Build from the JSON form.

        Raises:
            ConfigError: an unknown, missing or wrongly typed field, named with its path.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"policy config: {error}") from error


CLIP_LARGE_336 = VitConfig(
    name="clip",
    image_size=336,
    patch_size=14,
    width=1024,
    depth=24,
    heads=16,
    mlp_hidden=4096,
    feature_block=22,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    class_token=True,
    norm_eps=1e-5,
    activation="quick_gelu",
)
QWEN25_7B = QwenConfig(
    width=3584, layers=28, heads=28, key_value_heads=4, mlp_hidden=18944, vocab=151920
)

VISION_TOWERS: dict[str, VitConfig] = {
    "openai/clip-vit-large-patch14-336": CLIP_LARGE_336,
    "openai/clip-vit-large-patch14": msgspec.structs.replace(CLIP_LARGE_336, image_size=224),
}
"""What `mm_vision_tower` may name besides a folder."""
DECODERS: dict[str, QwenConfig] = {"Qwen/Qwen2.5-7B": QWEN25_7B}
"""What `llm_config` may name besides a folder: sizes that config.json leaves out."""
HEADS: dict[str, HeadConfig] = {
    "DiT-S": DIT_SIZES["small"],
    "DiT-B": DIT_SIZES["base"],
    "DiT-L": DIT_SIZES["large"],
}
"""What `action_model_type` may be."""

QWEN_BEFORE_IDS = (0,) * 31
"""As many as Qwen2.5's tokenizer gives; which ones they are is a checkpoint's tokenizer's
affair.
"""
QWEN_END = 151643

PRESETS: dict[str, DbCogActConfig] = {
    "dbcogact": DbCogActConfig(
        name="dbcogact",
        vision=CLIP_LARGE_336,
        projector=ProjectorConfig(hidden=(3584,)),
        language=QWEN25_7B,
        head=HEADS["DiT-B"],
        prompt=ChatPrompt(before_ids=QWEN_BEFORE_IDS, end_id=QWEN_END, pad_id=QWEN_END),
    )
}
