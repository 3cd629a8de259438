"""Instructions, and states that are text, -> token ids with the bundle's own tokenizer.

Follows each family's public code to the id: `PromptSpec` has what differs. Knows no network and no
socket.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bundle.inputs_and_output import PromptSpec
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import PromptError
from trimvla.runtime.specs import describe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CACHED_PROMPTS = 64
PLACE = re.compile(r"\{(instruction|state)\}")


class Prompter:
    """Instructions -> ids. The last few prompts are remembered."""

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

    def tokens(self, instruction: str, state: str = "") -> list[int]:
        """BOS, the filled template's ids, the suffix; not padded.

        PromptError if the instruction is empty.
        """
        spec = self._spec
        text = prompt_text(spec, instruction, state)
        parts = [text] if spec.split_at is None else text.split(spec.split_at, 1)
        ids = [
            i for part in parts for i in self._tokenizer.encode(part, add_special_tokens=False).ids
        ]
        return [*([] if spec.bos_id is None else [spec.bos_id]), *ids, *spec.suffix_ids]

    def ids(self, instruction: str, state: str = "") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `_ids`; the same arrays for the same text.

        PromptError also where the instruction is no text.
        """
        return self._cached_ids(check_instruction(instruction), state)

    def _ids(self, instruction: str, state: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the language stage takes: `input_ids` int64[1, L], `last` int64[1]; read-only.

        L is the smallest bucket that holds the prompt, padded on the right; `last` is the index of
        the last id that is not padding. Raises PromptError if the instruction is empty or longer
        than the largest bucket.
        """
        ids = self.tokens(instruction, state)
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


def prompt_text(spec: PromptSpec, instruction: str, state: str = "") -> str:
    """The template, filled. PromptError if the instruction is empty."""
    if not check_instruction(instruction).strip():
        raise PromptError(f"expected an instruction, got {instruction!r}")
    if spec.strip:
        instruction = instruction.strip()
    if spec.underscores:
        instruction = instruction.replace("_", " ").replace("\n", " ")
    if spec.lowercase:
        instruction = instruction.lower()
    values = {"instruction": instruction, "state": state}
    text = PLACE.sub(lambda place: values[place[1]], spec.template)
    if spec.newline and not text.endswith("\n"):
        text += "\n"
    return text.rstrip(" ") if spec.trim_end else text


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
