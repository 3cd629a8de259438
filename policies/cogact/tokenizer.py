"""Makes the small tokenizer of a policy trained from scratch, and turns prompts into ids.

A byte-fallback BPE over words in LLaMA's manner: every string has ids, the words of the corpus are
one token each. CogACT itself uses LLaMA-2's tokenizer, which a user brings as `tokenizer.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from trimvla.policies.sizes.config import PromptConfig

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<empty>")  # ids 0 to 3, as in the tabletop preset
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def build_tokenizer(prompts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a tokenizer of at most `vocab` entries on prompts; the same prompts give the same
    tokenizer.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[?:.,!\n]"), "isolated"), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[*SPECIAL_TOKENS, *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(prompts, trainer)
    return tokenizer


def extend_tokenizer(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """Give each of these words an id of its own behind those that there are; all other text keeps
    its ids.
    """
    tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True) for word in words])
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, prompt: PromptConfig, instruction: str) -> list[int]:
    """BOS, the filled template, the empty token, EOS; not padded."""
    text = prompt.template.format(instruction=instruction.lower()).rstrip(" ")
    return [
        prompt.bos_id,
        *tokenizer.encode(text, add_special_tokens=False).ids,
        prompt.empty_id,
        prompt.eos_id,
    ]


def instruction_in(text: str, template: str) -> str:
    """The instruction in a decoded prompt; the whole text where it is not of this template.

    Decoding does not give back every space, so words and signs alone are compared.
    """
    before, _, after = (_spaced(part) for part in template.partition("{instruction}"))
    found = re.fullmatch(rf"\s*{before}\s*(.*?)\s*{after}\s*", text, re.DOTALL | re.IGNORECASE)
    return " ".join((found[1] if found else text).split())


def _spaced(text: str) -> str:
    """A pattern for these words and signs, with any spaces between them."""
    return r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", text)))
