"""What stands before and after the network: picture -> pixels, instruction -> ids, network output -> actions.

Each follows the public CogACT code to the number: Pillow's bicubic resize of the whole picture, the OpenVLA prompt with
its two appended ids, the q01/q99 un-normalisation with a binary gripper. Knows no network, no socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.errors import BundleError, PromptError
from trimvla.runtime.manifest import ActionKind, PromptSpec
from trimvla.runtime.specs import ArraySpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PICTURE = ArraySpec("image", "uint8", (None, None, 3))
GRIPPER_THRESHOLD = 0.5
CACHED_PROMPTS = 64


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """RGB uint8[h, w, 3] -> uint8[size, size, 3], straight (no crop), bicubic with antialias on uint8.

    This is torchvision's resize of a PIL picture, hence the official one. Raises SpecError on another dtype or shape.
    """
    PICTURE.validate(image)
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


@dataclass(frozen=True)
class Prompt:
    """An instruction as the language stage takes it."""

    input_ids: NDArray[np.int64]
    """int64[1, L], BOS first, padded on the right up to a bucket."""
    last: NDArray[np.int64]
    """int64[1], the index of the last id that is not padding."""


class PromptEncoder:
    """Instructions -> ids with the bundle's own tokenizer. The last few prompts are remembered."""

    def __init__(self, tokenizer_json: Path, spec: PromptSpec) -> None:
        self._spec = spec
        self._tokenizer = _load_tokenizer(tokenizer_json)
        self.encode = lru_cache(CACHED_PROMPTS)(self._encode)

    def token_ids(self, instruction: str) -> list[int]:
        """BOS, the filled template without its trailing space, the suffix; not padded. PromptError if empty."""
        if not instruction.strip():
            raise PromptError(f"expected an instruction, got {instruction!r}")
        spec = self._spec
        text = spec.template.replace("{instruction}", instruction.lower() if spec.lowercase else instruction)
        ids = self._tokenizer.encode(text.rstrip(" "), add_special_tokens=False).ids
        return [spec.bos_id, *ids, *spec.suffix_ids]

    def _encode(self, instruction: str) -> Prompt:
        """The instruction, padded to the smallest bucket that holds it. PromptError if it is empty or too long."""
        ids = self.token_ids(instruction)
        length = next((bucket for bucket in self._spec.buckets if bucket >= len(ids)), None)
        if length is None:
            limit = self._spec.buckets[-1]
            raise PromptError(f"expected at most {limit} tokens for the prompt, got {len(ids)}: {instruction[:80]!r}")
        padded = np.full((1, length), self._spec.pad_id, np.int64)
        padded[0, : len(ids)] = ids
        return Prompt(padded, np.array([len(ids) - 1], np.int64))


def _load_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise BundleError(f"{path}: no tokenizer: {error}") from None


class ActionStatistics(msgspec.Struct, frozen=True):
    """One data set's quantiles per action dimension; where `mask` is false the number is left as it is."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.q01), len(self.q99), len(self.mask or self.q01)}
        if len(lengths) != 1:
            raise ValueError(f"expected equal lengths for q01, q99 and mask, got {sorted(lengths)}")


class _KeyStatistics(msgspec.Struct, frozen=True):
    action: ActionStatistics


def load_statistics(path: Path, key: str) -> ActionStatistics:
    """One key of a statistics file in the official layout `{key: {"action": {"q01", "q99", "mask"}}}`."""
    try:
        table = msgspec.json.decode(path.read_bytes(), type=dict[str, _KeyStatistics])
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise BundleError(f"{path}: {error}") from None
    if key not in table:
        raise BundleError(f"{path}: expected the key '{key}', got {sorted(table)}")
    return table[key].action


def normalize(raw: NDArray[np.float32], kinds: tuple[ActionKind, ...]) -> NDArray[np.float32]:
    """Raw sample float32[H, D] -> clipped to [-1, 1], gripper dimensions 0 (close) below 0.5, else 1 (open)."""
    clipped = np.clip(raw, -1.0, 1.0)
    for column in (i for i, kind in enumerate(kinds) if kind == "gripper"):
        clipped[:, column] = np.where(clipped[:, column] < GRIPPER_THRESHOLD, 0.0, 1.0)
    return clipped


def unnormalize(normalized: NDArray[np.float32], statistics: ActionStatistics) -> NDArray[np.float64]:
    """[-1, 1] float32[H, D] -> the robot's units float64[H, D]: 0.5 (a + 1) (q99 - q01) + q01 where masked."""
    low, high = np.array(statistics.q01), np.array(statistics.q99)
    mask = np.ones(low.shape, bool) if statistics.mask is None else np.array(statistics.mask)
    return np.where(mask, 0.5 * (normalized + 1) * (high - low) + low, normalized)
