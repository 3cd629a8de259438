"""What a bundle needs besides weights, where the weights are random: a tokenizer and statistics
that mean nothing.

The tokenizer knows the words of the prompt's template and takes every other word for one unknown
word, so prompts have a usual length; un-normalised actions are the network's own numbers. Both note
what they are.
"""

from __future__ import annotations

from collections.abc import Collection

from tokenizers import Tokenizer, models, pre_tokenizers

from trimvla.policies.sizes.config import PolicyConfig, PromptConfig
from trimvla.runtime.bundle.inputs_and_output import PromptSpec

KEY = "random-weights"


def placeholder_tokenizer(prompt: PromptConfig) -> str:
    """Content of a `tokenizer.json`."""
    return _tokenizer(
        prompt.template, {prompt.pad_id, prompt.bos_id, prompt.eos_id, prompt.empty_id}
    )


def placeholder_for(prompt: PromptSpec) -> str:
    """The same for a prompt as a manifest describes it."""
    return _tokenizer(prompt.template, {prompt.pad_id, prompt.bos_id, *prompt.suffix_ids})


def _tokenizer(template: str, reserved: Collection[int | None]) -> str:
    splitter = pre_tokenizers.Whitespace()
    empty = template.format(instruction="", state="")
    words = dict.fromkeys(word for word, _ in splitter.pre_tokenize_str(empty))
    free = (index for index in range(len(words) + len(reserved) + 1) if index not in reserved)
    vocabulary = dict(zip(("<unk>", *words), free, strict=False))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return tokenizer.to_str(pretty=True)


def placeholder_statistics(cfg: PolicyConfig) -> dict[str, object]:
    """Statistics under `KEY` that leave the network's numbers as they are."""
    dim = cfg.head.action_dim
    return {
        KEY: {
            "action": {
                "q01": [-1.0] * dim,
                "q99": [1.0] * dim,
                "mask": [True] * (dim - 1) + [False],
            }
        }
    }
