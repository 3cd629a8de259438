"""What stands before and after the network: picture -> pixels, instruction -> ids, network output
-> actions.

Each follows the public CogACT code to the number: Pillow's bicubic resize of the whole picture, the
OpenVLA prompt with its two appended ids, the q01/q99 un-normalisation with a binary gripper. Knows
no network, no socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.action_statistics import MIN_SPREAD, ActionStatistics
from trimvla.runtime.bundle.manifest import PromptSpec
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ObservationError, PromptError, SpecError
from trimvla.runtime.specs import ArraySpec, describe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PICTURE = ArraySpec("image", "uint8", (None, None, 3))
GRIPPER_THRESHOLD = 0.5
CACHED_PROMPTS = 64


def check_picture(image: NDArray[np.uint8]) -> None:
    """Raise ObservationError unless it is RGB uint8[h, w, 3] with at least one pixel."""
    try:
        PICTURE.validate(image)
    except SpecError as error:
        raise ObservationError(str(error)) from None
    if not image.size:
        raise ObservationError(f"expected pixels in 'image', got shape {list(image.shape)}")


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """RGB uint8[h, w, 3] -> uint8[size, size, 3], straight (no crop), bicubic with antialias on
    uint8.

    This is torchvision's resize of a PIL picture, hence the official one. Raises ObservationError
    on another dtype or shape.
    """
    check_picture(image)
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


class Prompter:
    """Instructions -> ids with the bundle's own tokenizer. The last few prompts are remembered."""

    def __init__(self, tokenizer: Tokenizer, spec: PromptSpec) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._cached_ids = lru_cache(CACHED_PROMPTS)(self._ids)

    @classmethod
    def load(cls, tokenizer_json: Path, spec: PromptSpec) -> Prompter:
        """With a `tokenizer.json` as the `tokenizers` library writes it.

        Raises BundleError if it is none.
        """
        return cls(load_tokenizer(tokenizer_json), spec)

    def tokens(self, instruction: str) -> list[int]:
        """BOS, the filled template without its trailing space, the suffix; not padded.

        PromptError if empty.
        """
        if not check_instruction(instruction).strip():
            raise PromptError(f"expected an instruction, got {instruction!r}")
        spec = self._spec
        text = spec.template.replace(
            "{instruction}", instruction.lower() if spec.lowercase else instruction
        )
        ids = self._tokenizer.encode(text.rstrip(" "), add_special_tokens=False).ids
        return [spec.bos_id, *ids, *spec.suffix_ids]

    def ids(self, instruction: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `_ids`; the same arrays for the same instruction.

        PromptError also where it is no text.
        """
        return self._cached_ids(check_instruction(instruction))

    def _ids(self, instruction: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the language stage takes: `input_ids` int64[1, L], `last` int64[1]; read-only.

        L is the smallest bucket that holds the prompt, padded on the right; `last` is the index of
        the last id that is not padding. Raises PromptError if the instruction is empty or longer
        than the largest bucket.
        """
        ids = self.tokens(instruction)
        length = next((bucket for bucket in self._spec.buckets if bucket >= len(ids)), None)
        if length is None:
            limit = self._spec.buckets[-1]
            raise PromptError(
                f"expected at most {limit} tokens for the prompt, got {len(ids)}:"
                f" {instruction[:80]!r}"
            )
        padded = np.full((1, length), self._spec.pad_id, np.int64)
        padded[0, : len(ids)] = ids
        padded.setflags(write=False)
        return padded, np.array([len(ids) - 1], np.int64)


def check_instruction(instruction: object) -> str:
    """An instruction that is text. Raises PromptError, which names the field, for anything else."""
    if not isinstance(instruction, str):
        raise PromptError(f"expected text for 'instruction', got {_kind(instruction)}")
    try:
        instruction.encode()
    except UnicodeEncodeError:
        raise PromptError(
            f"expected text in Unicode for 'instruction', got {instruction[:80]!a}"
        ) from None
    return instruction


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return describe(value.dtype.name, value.shape)
    return type(value).__name__


def binarise(sample: NDArray[np.float32], gripper: Sequence[int] = (6,)) -> NDArray[np.float32]:
    """Raw sample float32[..., D] -> clipped to [-1, 1], gripper dimensions 0 (close) below 0.5,
    else 1 (open).
    """
    clipped = np.clip(sample, -1.0, 1.0)
    columns = list(gripper)
    clipped[..., columns] = np.where(clipped[..., columns] < GRIPPER_THRESHOLD, 0.0, 1.0)
    return clipped


def normalise(actions: NDArray[np.float64], statistics: ActionStatistics) -> NDArray[np.float32]:
    """The inverse of `unnormalise`; dimensions without spread, which it cannot tell apart, become
    0.
    """
    low, high, mask = _arrays(statistics)
    spread = np.where(high - low > MIN_SPREAD, high - low, np.inf)
    scaled = 2.0 * (actions - low) / spread - (spread < np.inf)
    return np.where(mask, scaled, actions).astype(np.float32)


def unnormalise(
    normalized: NDArray[np.float32], statistics: ActionStatistics
) -> NDArray[np.float64]:
    """[-1, 1] float32[..., D] -> the robot's units float64[..., D]: 0.5 (a + 1) (q99 - q01) + q01
    where masked.
    """
    low, high, mask = _arrays(statistics)
    return np.where(mask, 0.5 * (normalized + 1) * (high - low) + low, normalized)


@lru_cache(maxsize=8)
def _arrays(
    statistics: ActionStatistics,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """q01, q99 and the mask, made once: between two inferences the caches are cold and every small
    array costs.
    """
    low = np.array(statistics.q01)
    high = np.array(statistics.q99)
    mask = np.ones(low.shape, bool) if statistics.mask is None else np.array(statistics.mask)
    return low, high, mask
